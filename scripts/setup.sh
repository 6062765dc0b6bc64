#!/usr/bin/env bash
# Installs what is missing, and nothing else: Debian packages, and a virtual environment in .venv.
#
#   scripts/setup.sh demo    what it takes to run lamina and to show it
#   scripts/setup.sh lint    what it takes to check the code
#   scripts/setup.sh test    what it takes to run the tests and the benchmark
#
# A second run finds everything in place and is done at once. PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

purpose=${1:-test}
log=.cache/setup.log
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" # where Debian keeps runc

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# --- what can be looked for -----------------------------------------------------------------------

has() { command -v "$1" >/dev/null 2>&1; }
has_compiler() { has cc || has gcc; }
has_libfuse() { has pkg-config && pkg-config --exists fuse3; }
has_runtime() { has runc || has crun; }
has_static_busybox() { has busybox && ! ldd "$(command -v busybox)" 2>/dev/null | grep -q '=>'; }
has_venv() { "$python" -c 'import ensurepip, venv' 2>/dev/null; }
has_headers() {
    "$python" -c 'import os, sysconfig
os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null
}
has_file() { [ -e "$1" ]; }

is_new_enough() { has "$1" && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; }

# The first Python that is new enough.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# --- Debian packages ------------------------------------------------------------------------------

missing=()
needs() { # needs PACKAGE CHECK...: remember the package if the check fails
    local package=$1
    shift
    "$@" || missing+=("$package")
}

look_for_required() {
    missing=()
    python=$(find_python) || python=python3
    needs python3 is_new_enough "$python"
    needs gcc has_compiler
    needs pkg-config has pkg-config
    needs libfuse3-dev has_libfuse
    needs python3-dev has_headers
    needs python3-venv has_venv
    [ "$purpose" != lint ] || return 0
    needs fuse3 has fusermount3
    needs runc has_runtime
    needs busybox-static has_static_busybox
}

# Other programs the tests compare with. Without one, the tests that need it are skipped and named.
look_for_peers() {
    missing=()
    [ "$purpose" = test ] || return 0
    needs acl has setfacl
    needs attr has setfattr
    needs buildah has buildah
    needs crun has crun
    needs fuse-overlayfs has fuse-overlayfs
    needs golang-github-containers-common has_file /etc/containers/registries.conf
    needs golang-github-containers-image has_file /etc/containers/policy.json
    needs mmdebstrap has mmdebstrap
    needs podman has podman
    needs skopeo has skopeo
    needs uidmap has newuidmap
    needs umoci has umoci
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif [ -t 0 ]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}

# Whether packages can be installed at all; says why not.
can_install() {
    if ! has apt-get; then
        say "this is neither Debian nor Ubuntu: install what these Debian packages hold: $*"
    elif [ "$(id -u)" -ne 0 ] && ! has sudo; then
        say "not root and no sudo: have these packages installed: $*"
    elif [ "$(id -u)" -ne 0 ] && [ ! -t 0 ] && ! sudo -n true 2>/dev/null; then
        say "sudo asks for a password and there is no terminal: run: sudo apt-get install $*"
    else
        return 0
    fi
    return 1
}

apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"; }

install_packages() {
    can_install "$@" || return 1
    say "installing Debian packages: $*"
    mkdir -p .cache
    if ! { apt update && apt install -y --no-install-recommends "$@"; } >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        say "apt-get failed (all of its output: $log)"
        return 1
    fi
}

look_for_required
required=("${missing[@]}")
look_for_peers
wanted=("${required[@]}" "${missing[@]}")
if [ ${#wanted[@]} -gt 0 ]; then
    install_packages "${wanted[@]}" || true # what is missing now decides
    look_for_required
    if [ ${#missing[@]} -gt 0 ]; then
        is_new_enough "$python" || say "Python 3.11 or newer is needed (PYTHON= names another one)"
        die "cannot go on without: ${missing[*]}"
    fi
    look_for_peers
    [ ${#missing[@]} -eq 0 ] || say "tests that compare with these will be skipped: ${missing[*]}"
fi

# Says what is wrong with /dev/fuse, if anything.
look_for_fuse() {
    if [ ! -e /dev/fuse ]; then
        echo "there is no /dev/fuse: load the module (modprobe fuse), or give it to the container this machine is (--device /dev/fuse)"
    elif [ ! -r /dev/fuse ] || [ ! -w /dev/fuse ]; then
        # fusermount3 is no way round: it opens the device as the user who calls it.
        echo "only root may open /dev/fuse; where udev runs, everybody may: sudo chmod 0666 /dev/fuse"
    fi
}

if [ "$purpose" != lint ]; then
    if [ -e /dev/fuse ] && [ -n "$(look_for_fuse)" ] && as_root chmod 0666 /dev/fuse 2>/dev/null; then
        say "let everybody open /dev/fuse, as udev does elsewhere (chmod 0666, until the next boot)"
    fi
    trouble=$(look_for_fuse)
    if [ -n "$trouble" ]; then
        [ "$purpose" = test ] || die "$trouble"
        say "$trouble"
        say "tests that mount are skipped"
    fi
fi

# --- the virtual environment ----------------------------------------------------------------------

extras='' level=run
if [ "$purpose" != demo ]; then
    extras='[dev]' level=dev
fi

home_of_venv="$PWD $("$python" -c 'import sys; print(sys.base_prefix, sys.version)')"
if [ "$(cat .venv/.made-by 2>/dev/null)" != "$home_of_venv" ]; then
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
    printf '%s\n' "$home_of_venv" >.venv/.made-by
fi

wanted_stamp=$(sha256sum <pyproject.toml)
if [ "$(cat ".venv/.installed-$level" 2>/dev/null)" != "$wanted_stamp" ]; then
    say "installing Python packages into .venv"
    mkdir -p .cache
    if ! .venv/bin/python -m pip install --disable-pip-version-check -e ".$extras" >"$log" 2>&1; then
        tail -n 25 "$log" >&2
        die "pip failed (all of its output: $log)"
    fi
    printf '%s\n' "$wanted_stamp" >.venv/.installed-run # every level holds the lower one
    printf '%s\n' "$wanted_stamp" >".venv/.installed-$level"
fi
