#!/bin/sh
# Installs a worker into ~/.batchscribe/venv, or another `name` beside it. Runs on the GPU host, in the unpacked
# folder: the files `extra` and `release` select the package, from a wheel in the folder or from the index. If
# there is a file `pins.txt`, all dependencies are installed exactly as listed there, by version and hash.
# `packages.txt` lists the packages of a third-party engine, `kept` the environments beside that stay.
set -eu
umask 077
here=$(pwd)
root=$HOME/.batchscribe
read -r extra < extra
read -r release < release
read -r name < name
what="batchscribe[$extra]==$release"
for wheel in "$here"/batchscribe-*.whl; do
    if [ -f "$wheel" ]; then what="$wheel[$extra]"; fi
done

new_enough() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for name in python3.13 python3.12 python3.11 python3; do
        if command -v "$name" >/dev/null 2>&1 && new_enough "$name"; then
            command -v "$name"
            return
        fi
    done
}

find_uv() {
    for name in uv "$HOME/.local/bin/uv" "$here/uv" "$root/tools/bin/uv"; do
        if command -v "$name" >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    if python3 -m pip install --quiet --target "$root/tools" uv >&2; then
        echo "$root/tools/bin/uv"
    fi
}

# "$@" is an installer with its options.
install_all() {
    if [ -f "$here/pins.txt" ]; then
        "$@" --require-hashes -r "$here/pins.txt" >&2
        "$@" --no-deps "$what" >&2
    else
        "$@" "$what" >&2
    fi
    if [ -f "$here/packages.txt" ]; then "$@" -r "$here/packages.txt" >&2; fi
}

fresh=$(mktemp -d "$root/$name.XXXXXX")
trap 'rm -rf "$fresh"' EXIT
python=$(find_python)
if [ -n "$python" ]; then
    "$python" -m venv "$fresh" >&2
    install_all "$fresh/bin/python" -m pip install --quiet --disable-pip-version-check --no-warn-conflicts
else
    uv=$(find_uv)
    if [ -z "$uv" ]; then
        # The controller may have a uv for this architecture.
        uname -m
        exit 41
    fi
    "$uv" venv --quiet --allow-existing --python '>=3.11' "$fresh" >&2
    install_all "$uv" pip install --quiet --python "$fresh/bin/python"
fi

# A folder of an older setup at the link's path cannot be replaced by renaming.
if [ -d "$root/$name" ] && [ ! -L "$root/$name" ]; then rm -rf "${root:?}/$name"; fi
ln -sfn "$(basename "$fresh")" "$root/$name.next"
mv -T "$root/$name.next" "$root/$name"
trap - EXIT
for old in "$root/$name".*; do
    if [ "$old" != "$fresh" ]; then rm -rf "$old"; fi
done
if [ -f "$here/kept" ]; then
    for old in "$root"/venv-*; do
        beside=$(basename "$old")
        if ! grep -qxF "${beside%%.*}" "$here/kept"; then rm -rf "$old"; fi
    done
fi
"$root/$name/bin/python" --version
