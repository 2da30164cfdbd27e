# shellcheck shell=bash
# What scripts/test, scripts/demo and benchmarks/buildah_hand share: packages, the ordinary user
# that does the work, the virtual environment, ports, times, and cleaning up.

# Debian's runc and friends stand in the sbin directories, which an ordinary PATH leaves out.
export PATH="${PATH:-/usr/bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

say() { printf '==> %s\n' "$*" >&2; }

die() { # STATUS MESSAGE...
    local status=$1
    shift
    printf 'error: %s\n' "$*" >&2
    exit "$status"
}

# --- packages ------------------------------------------------------------------------------------

# Prints those of the packages that are missing. A program of the package's name counts too,
# wherever it came from.
missing_packages() {
    local package installed
    installed=" $(dpkg-query -W -f '${db:Status-Status}:${Package} ' "$@" 2>/dev/null || true)"
    for package in "$@"; do
        if [[ $installed != *" installed:$package "* ]] && ! command -v "$package" >/dev/null; then
            printf '%s\n' "$package"
        fi
    done
}

# Root installs what is missing; anybody else is told the command that does, and the status is 2.
need_packages() {
    local missing registry_was_there=yes
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]})) || return 0
    if ((EUID != 0)); then
        die 2 "these packages are missing; as root, run: apt-get install ${missing[*]}"
    fi
    say "installing ${missing[*]}"
    [[ " ${missing[*]} " != *" docker-registry "* ]] || registry_was_there=no
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >&2 </dev/null
    apt-get install -q -y --no-install-recommends "${missing[@]}" >&2 </dev/null
    [[ $registry_was_there == yes ]] || stop_registry_service
}

# Debian's docker-registry package starts a service on its default port; nobody asked for that.
stop_registry_service() {
    if [[ -d /run/systemd/system ]]; then
        systemctl disable --now --quiet docker-registry || true
    elif [[ -x /etc/init.d/docker-registry ]]; then
        /etc/init.d/docker-registry stop >&2 || true
    fi
}

# --- the ordinary user ---------------------------------------------------------------------------

# Makes the user unless it is there, with a home and with subordinate user and group ids.
ensure_user() { # USER
    if ! getent passwd "$1" >/dev/null; then
        say "creating the user $1"
        useradd --create-home --user-group --shell /bin/bash "$1"
    fi
    ensure_subordinate_ids /etc/subuid --add-subuids "$1"
    ensure_subordinate_ids /etc/subgid --add-subgids "$1"
}

ensure_subordinate_ids() { # FILE FLAG USER
    local first
    touch "$1"
    if ! grep -q "^$3:" "$1"; then
        first=$(awk -F: 'BEGIN { next_free = 100000 }
                         $2 + $3 > next_free { next_free = $2 + $3 }
                         END { print next_free }' "$1")
        usermod "$2" "$first-$((first + 65535))" "$3"
    fi
}

home_of() { getent passwd "$1" | cut -d: -f6; }

# Sets `as_user_command` to what runs a command as the user: the environment is passed on, but
# nothing of it that belongs to the caller's own session, home or Python.
plan_as_user() { # USER COMMAND...
    local user=$1 name
    shift
    as_user_command=(setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups
        --inh-caps=-all -- env -u MAIL -u OLDPWD -u SUDO_COMMAND -u SUDO_USER -u SUDO_UID
        -u SUDO_GID -u PYTHONPATH -u PYTHONHOME -u VIRTUAL_ENV)
    for name in $(compgen -e XDG_); do
        as_user_command+=(-u "$name")
    done
    if [[ -n ${TMPDIR:-} ]] && ! can "$user" -w "$TMPDIR"; then
        as_user_command+=(-u TMPDIR)
    fi
    as_user_command+=(HOME="$(home_of "$user")" USER="$user" LOGNAME="$user" SHELL=/bin/bash
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@")
}

as_user() { # USER COMMAND...
    local as_user_command
    plan_as_user "$@"
    "${as_user_command[@]}"
}

can() { # USER TEST-FLAG PATH
    setpriv --reuid="$1" --regid="$(id -g "$1")" --init-groups -- test "$2" "$3"
}

# Copies the checkout (tracked files, and new ones that are not ignored) into the user's home and
# the caller's pip configuration to the same places there. Sets `checkout` to the copy's path.
hand_over() { # ROOT USER
    local root=$1 user=$2 home
    home=$(home_of "$user")
    checkout=$home/checkout
    say "copying the checkout to $checkout"
    cd "$home" || return
    # The environment and the linters' caches stay: they make the second run a quick one.
    as_user "$user" mkdir -p "$checkout"
    as_user "$user" find "$checkout" -mindepth 1 -maxdepth 1 \
        ! -name .venv ! -name '.*_cache' ! -name .hypothesis -exec rm -rf {} +
    checkout_files "$root" |
        tar -C "$root" --no-recursion --null --files-from=- -cf - |
        as_user "$user" tar -C "$checkout" --no-same-owner -xf -
    hand_over_pip "$user"
}

checkout_files() { # ROOT
    local path
    if [[ ! -e $1/.git ]]; then
        (cd "$1" && find . -name '.*_cache' -prune -o -name .venv -prune -o ! -type d -print0)
        return
    fi
    # Git refuses a checkout that belongs to somebody else; here only names are read.
    git -c safe.directory="$1" -C "$1" ls-files -z -co --exclude-standard |
        while IFS= read -r -d '' path; do
            if [[ -e $1/$path || -L $1/$path ]]; then
                printf '%s\0' "$path"
            fi
        done
}

hand_over_pip() { # USER
    local home
    home=$(home_of "$1")
    hand_over_file "$1" "$HOME/.pip/pip.conf" "$home/.pip/pip.conf"
    hand_over_file "$1" "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf" "$home/.config/pip/pip.conf"
    if [[ -f ${PIP_CONFIG_FILE:-} ]] && ! can "$1" -r "$PIP_CONFIG_FILE"; then
        hand_over_file "$1" "$PIP_CONFIG_FILE" "$home/.pip-config-file"
        export PIP_CONFIG_FILE="$home/.pip-config-file"
    fi
}

# A file's copy that only the user can read (a pip.conf may hold a password); no file, no copy.
hand_over_file() { # USER FROM TO
    if [[ -f $2 ]]; then
        as_user "$1" mkdir -p "${3%/*}"
        # shellcheck disable=SC2016 # for the inner shell
        as_user "$1" bash -c 'umask 077; rm -f "$1"; cat >"$1"' hand-over "$3" <"$2"
    else
        as_user "$1" rm -f "$3"
    fi
}

# --- the virtual environment ---------------------------------------------------------------------

# Makes ROOT/.venv with Debian's Python and installs ocis2i there, editable, unless that was done
# with the same pyproject.toml and the same Python.
ensure_venv() { # ROOT REQUIREMENT-SUFFIX
    local root=$1 suffix=$2 stamp=$1/.venv/installed want
    /usr/bin/python3 -Ic 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die 2 "/usr/bin/python3 is older than Python 3.11"
    want="$(/usr/bin/python3 -V) $root$suffix $(sha256sum <"$root/pyproject.toml")"
    if [[ -f $stamp && $(<"$stamp") == "$want" ]]; then
        return 0
    fi
    say "installing ocis2i$suffix into $root/.venv"
    /usr/bin/python3 -m venv --clear "$root/.venv"
    "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --editable "$root$suffix" >&2 </dev/null
    printf '%s' "$want" >"$stamp"
}

# --- running things ------------------------------------------------------------------------------

free_port() {
    /usr/bin/python3 -Ic 'import socket
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    print(probe.getsockname()[1])'
}

# Tries a URL on loopback until it answers 200, and prints the page; fails after some seconds, or
# at once when the process that should answer is gone.
fetch_when_up() { # URL PID SECONDS
    /usr/bin/python3 -I - "$1" "$2" "$3" <<'PYTHON'
import os, sys, time, urllib.error, urllib.request

url, pid, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
end = time.monotonic() + seconds
while True:
    try:
        with direct.open(url, timeout=5) as answer:
            sys.stdout.write(answer.read().decode())
        break
    except OSError as error:
        if time.monotonic() > end:
            sys.exit(f"error: no answer from {url}: {error}")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        sys.exit(f"error: the process that should answer at {url} has ended")
    time.sleep(0.05)
PYTHON
}

# What is started leads a session of its own, so that whatever it leaves behind can be ended too.
started_pids=()

# Starts a command beside this script; `stop_all` ends it. Sets `started_pid`.
start() { # LOG COMMAND...
    local log=$1
    shift
    setsid "$@" >"$log" 2>&1 </dev/null &
    started_pid=$!
    started_pids+=("$started_pid")
}

# Runs a command to its end, but so that a signal to this script does not wait for that end.
attend() { # COMMAND...
    local pid status=0
    setsid "$@" </dev/null &
    pid=$!
    started_pids+=("$pid")
    wait "$pid" || status=$?
    forget "$pid"
    return "$status"
}

forget() { # PID
    local pid kept=()
    for pid in ${started_pids[@]+"${started_pids[@]}"}; do
        [[ $pid == "$1" ]] || kept+=("$pid")
    done
    started_pids=(${kept[@]+"${kept[@]}"})
}

# Asks a process to end and gives it ten seconds; then ends it, and what it has left behind.
stop() { # PID
    local _
    kill -TERM "$1" 2>/dev/null || true
    for _ in {1..100}; do
        kill -0 "$1" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL -- "-$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
    forget "$1"
}

stop_all() {
    local index pids=(${started_pids[@]+"${started_pids[@]}"})
    for ((index = ${#pids[@]} - 1; index >= 0; index--)); do
        stop "${pids[index]}"
    done
}

# Files of subordinate ids can be removed only by a root of the user's own.
remove_tree() { # DIRECTORY
    rm -rf -- "$1" 2>/dev/null ||
        unshare --user --map-root-user --map-auto rm -rf -- "$1" ||
        printf 'warning: cannot remove %s\n' "$1" >&2
}

# Starts a real registry on a free loopback port. Sets `registry` to its HOST:PORT.
start_registry() { # DIRECTORY
    local directory=$1 name attempt
    local cleared=()
    # The registry takes its configuration from such variables too, before the file.
    while IFS= read -r name; do
        cleared+=(-u "$name")
    done < <(compgen -e REGISTRY_)
    mkdir -p "$directory/data"
    for attempt in 1 2 3; do
        registry=127.0.0.1:$(free_port)
        cat >"$directory/config.yml" <<CONFIG
version: 0.1
log:
  level: warn
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: $directory/data
http:
  addr: $registry
CONFIG
        start "$directory/log" env ${cleared[@]+"${cleared[@]}"} \
            docker-registry serve "$directory/config.yml"
        if fetch_when_up "http://$registry/v2/" "$started_pid" 15 >/dev/null; then
            return 0
        fi
        stop "$started_pid"
        say "attempt $attempt: the registry did not come up"
    done
    cat "$directory/log" >&2
    die 1 "the registry does not start"
}

# --- times ---------------------------------------------------------------------------------------

now() { date +%s.%N; }

seconds_since() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.2f", to - from }'; }
