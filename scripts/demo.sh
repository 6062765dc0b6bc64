#!/usr/bin/env bash
# Tells what lamina does by doing it: every line after a $ is run exactly as it is shown, every line
# after an "ok" has been checked, and the first thing that is not as it should be ends the demo.
# Stores, archives and containers live in a temporary directory that is gone afterwards.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/.venv/bin:$PATH:/usr/sbin:/sbin"
export LC_ALL=C.UTF-8
unset SOURCE_DATE_EPOCH

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
    bold='' dim='' green='' red='' plain=''
fi

place=$(mktemp -d "${TMPDIR:-/tmp}/lamina-demo.XXXXXX")

clean_up() {
    local status=$? store containers
    trap - EXIT
    trap '' INT TERM # cleaning up is not interrupted halfway
    cd /
    for store in "$place/first" "$place/second"; do
        [ -e "$store" ] || continue
        # By lamina: files of other owners inside a container are not ours to remove from outside.
        containers=$(lamina --root "$store" ps -aq) || continue
        # shellcheck disable=SC2086 # one word for each container
        [ -z "$containers" ] || lamina --root "$store" rm -f $containers >/dev/null || true
    done
    rm -rf "$place" || printf '%sleft behind: %s%s\n' "$red" "$place" "$plain" >&2
    case $status in
    0) ;;
    130 | 143) printf '\nInterrupted; nothing is left behind.\n' >&2 ;;
    *) printf '\n%sThe demo failed.%s\n' "$red$bold" "$plain" >&2 ;;
    esac
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- how the story is told ------------------------------------------------------------------------

titles=() durations=()
started=0

now() { printf '%s' "${EPOCHREALTIME/./}"; } # microseconds
end_step() { [ ${#titles[@]} -eq ${#durations[@]} ] || durations+=($(($(now) - started))); }

step() {
    end_step
    titles+=("$1")
    printf '\n%s%d. %s%s\n' "$bold" "${#titles[@]}" "$1" "$plain"
    started=$(now)
}

# Show a command, run it, show what it printed; that stays in $output.
type_() {
    local status=0
    printf '%s$ %s%s\n' "$green" "$1" "$plain"
    output=$(eval "$1" 2>&1) || status=$?
    [ -z "$output" ] || printf '%s\n' "$output"
    [ "$status" -eq 0 ] || fail "exit code $status"
}

fail() {
    printf '%sNOT SO: %s%s\n' "$red$bold" "$1" "$plain" >&2
    exit 1
}

# holds CLAIM COMMAND...: the claim, if the command succeeds.
holds() {
    local claim=$1
    shift
    "$@" || fail "$claim"
    printf '%sok %s%s\n' "$dim" "$claim" "$plain"
}

# is CLAIM EXPECTED ACTUAL
is() {
    [ "$2" = "$3" ] || fail "$1 (expected: $2; found: $3)"
    printf '%sok %s%s\n' "$dim" "$1" "$plain"
}

has_line() { grep -q -- "$2" <<<"$1"; }
has_no_line() { ! has_line "$1" "$2"; }
describe() { lamina --root "$1" inspect --type image -f "$3" "$2"; }

# --- the story ------------------------------------------------------------------------------------

cd "$place"
who=$([ "$(id -u)" -eq 0 ] && echo root || echo "an ordinary user, $(id -un)")
printf '%s%s%s, as %s, on %s %s\n' "$bold" "$(lamina --version)" "$plain" "$who" "$(uname -s)" "$(uname -r)"

step 'A root filesystem, out of nothing but busybox'
mkdir -p rootfs/bin rootfs/etc rootfs/tmp
cp "$(command -v busybox)" rootfs/bin/busybox
busybox --list | grep -vx busybox | while read -r applet; do
    ln -s busybox "rootfs/bin/$applet"
done
echo 'root:x:0:0:root:/:/bin/sh' >rootfs/etc/passwd
echo 'Welcome to an image of two megabytes.' >rootfs/etc/motd
chmod 1777 rootfs/tmp
type_ 'tar --numeric-owner --owner=0 --group=0 -cf busybox.tar -C rootfs .'
type_ 'lamina --root first import busybox.tar demo/busybox'
type_ 'lamina --root first images'
holds 'the store has one image, demo/busybox:latest' has_line "$output" '^demo/busybox  *latest '

step 'A container writes a page and deletes a file of its image'
page='<h1>Served from a layer</h1>'
type_ "lamina --root first run --name b1 demo/busybox \\
    sh -c 'mkdir -p /data/html && echo \"$page\" > /data/html/index.html && rm /etc/motd'"
type_ 'lamina --root first run --rm demo/busybox cat /etc/motd'
is 'the image is as it was' "$(cat rootfs/etc/motd)" "$output"
type_ 'lamina --root first ps -a'
holds 'only b1 is left, and ended well' has_line "$output" 'Exited (0).* b1$'
is 'one container' 1 "$(lamina --root first ps -aq | wc -l)"

step 'Its changes become an image, twice'
type_ "lamina --root first commit -a 'Ada <ada@example.org>' -m 'a page, no motd' b1 demo/httpd:v0.1"
type_ "lamina --root first commit -c 'CMD [\"/bin/httpd\",\"-f\",\"-h\",\"/data/html\"]' b1 demo/httpd:v0.2"

step 'What the new image is made of'
type_ 'lamina --root first history demo/httpd:v0.2'
is 'two steps: the import and the commit' 2 "$(lamina --root first history -q demo/httpd:v0.2 | wc -l)"
type_ 'lamina --root first history demo/httpd:v0.1'
holds 'the message of the commit is kept' has_line "$output" 'a page, no motd *$'
type_ "lamina --root first inspect -f '{{.Author}}' demo/httpd:v0.1"
is 'and its author' 'Ada <ada@example.org>' "$output"
type_ "lamina --root first inspect -f '{{json .RootFS.Layers}}' demo/httpd:v0.2"
v02_layers=$output
mapfile -t layers < <(grep -oE 'sha256:[0-9a-f]{64}' <<<"$v02_layers")
is 'two layers: busybox, and what b1 changed' 2 "${#layers[@]}"
is 'the same changes made the same layer' "$v02_layers" \
    "$(describe first demo/httpd:v0.1 '{{json .RootFS.Layers}}')"
is 'the lower one is that of demo/busybox' "[\"${layers[0]}\"]" \
    "$(describe first demo/busybox '{{json .RootFS.Layers}}')"
type_ "lamina --root first inspect -f '{{json .Config.Cmd}}' demo/httpd:v0.2"
is 'v0.2 knows its command' '["/bin/httpd","-f","-h","/data/html"]' "$output"
holds 'v0.1 would start what b1 ran' \
    has_line "$(describe first demo/httpd:v0.1 '{{json .Config.Cmd}}')" '^\["sh","-c",'

step 'Both tags go into one archive'
type_ 'lamina --root first save -o httpd.tar demo/httpd:v0.1 demo/httpd:v0.2'
blob() { printf 'blobs/sha256/%s' "${layers[$1]#sha256:}"; }
type_ "tar -tf httpd.tar | grep -v '/\$'"
for index in 0 1; do
    is "layer $index is in the archive once" 1 "$(grep -cx "$(blob "$index")" <<<"$output")"
done
type_ "tar -xOf httpd.tar $(blob 1) | tar -tv"
holds 'the upper layer holds the page' has_line "$output" ' data/html/index.html$'
holds 'and a whiteout for the deleted file' has_line "$output" ' etc/\.wh\.motd$'
holds 'and nothing of busybox' has_no_line "$output" busybox

step 'The archive is loaded into an empty store'
type_ 'lamina --root second images -q'
is 'the second store is empty' '' "$output"
type_ 'lamina --root second load -i httpd.tar'
type_ 'lamina --root second images'
for tag in v0.1 v0.2; do
    is "$tag has the ID it had in the first store" \
        "$(describe first "demo/httpd:$tag" '{{.Id}}')" "$(describe second "demo/httpd:$tag" '{{.Id}}')"
done

step 'A container of the second store serves the page to itself'
type_ "lamina --root second run --rm demo/httpd:v0.2 sh -c '
    /bin/httpd -f -h /data/html &
    n=0
    until wget -q -O - http://127.0.0.1/; do
        n=\$((n + 1))
        [ \$n -lt 50 ] || exit 1
        sleep 0.1
    done 2>/dev/null
    ls /etc'"
holds 'the page came over the container'\''s own loopback' has_line "$output" "^$page\$"
holds 'the rest of /etc is there' has_line "$output" '^passwd$'
holds 'the deleted file is gone' has_no_line "$output" motd
is 'no container is left' 0 "$(lamina --root second ps -aq | wc -l)"
end_step

printf '\n%sHow long each step took%s\n' "$bold" "$plain"
for index in "${!titles[@]}"; do
    printf '%6d ms  %s\n' "$((durations[index] / 1000))" "${titles[index]}"
done
printf '\n%sHow big each layer is%s\n' "$bold" "$plain"
printf '%9s  %9s\n' 'as tar' 'stored'
for index in 0 1; do
    tar_size=$(tar -xOf httpd.tar "$(blob "$index")" | wc -c)
    pack_size=$(stat -c %s "second/layers/${layers[index]#sha256:}.pack")
    printf '%9d  %9d  bytes  %s\n' "$tar_size" "$pack_size" "${layers[index]}"
done
