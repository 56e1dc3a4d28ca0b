# What scripts/bootstrap and scripts/get-compose share; to be sourced.

say() { printf 'bootstrap: %s\n' "$*"; }
fail() { printf 'bootstrap: %s\n' "$@" >&2; exit 2; }

# Run a command that may be long: one line before, its time after, its output only if it fails.
step() {
  local what=$1 log started=$SECONDS
  shift
  log=$(mktemp)
  printf 'bootstrap: %s … ' "$what"
  if "$@" >"$log" 2>&1 </dev/null; then
    printf '%d s\n' $((SECONDS - started))
    rm -f "$log"
  else
    local status=$?
    printf 'failed (exit %d): %s\n' "$status" "$*"
    tail -n 30 "$log" >&2
    rm -f "$log"
    exit 2
  fi
}

# 0: an engine answers; 1: no engine answers; 2: an engine refuses us. Prints the reason.
engine() { .venv/bin/python -c "import sys; from testbed.backends.docker.engine import main; sys.exit(main())"; }

debian_root() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && grep -qE '^ID(_LIKE)?=.*(debian|ubuntu)' /etc/os-release; }

apt_updated=
apt_update() {
  [ -n "$apt_updated" ] || step "apt-get update" apt-get update
  apt_updated=1
}
apt_install() {
  apt_update
  step "apt-get install $*" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

install_locked() { # LOCKFILE: bring .venv to exactly what the file pins
  .venv/bin/pip install --disable-pip-version-check --require-hashes -r "$1"
}
