# What an operator does on a machine that has systemd: types the commands of docs/operations (each is a file below
# /srv/page, made by the test) and looks at what comes of them. Lines `== NAME` tell the test what follows.
set -u -o pipefail

fail() {
	echo "== FAILED: $*"
	systemctl --no-pager --full status builderd
	journalctl --no-pager -o cat -u builderd | tail -n 40
	exit 1
}
# The machine has neither an editor nor sudo, and root is at the keyboard.
sudo() {
	if [ "$1" = -u ]; then
		local user=$2
		shift 2
		runuser -u "$user" -- "$@"
	else
		"$@"
	fi
}
sudoedit() {
	sed -i 's/^#\(UNKEY_BUILDERD_AUDIT_\)/\1/' "$1"
	echo UNKEY_BUILDERD_DOCKER_REGISTRY_MIRROR=http://127.0.0.1:5000 >>"$1"
}

# Types the commands of a block of the page.
page() {
	local file
	echo "== page $1"
	for file in /srv/page/"$1".*; do
		# shellcheck source=/dev/null
		. "$file" || fail "exit code $? of $(cat "$file")"
	done
}

# Waits for a port of loopback, while what serves it runs.
port() {
	for _ in {1..600}; do
		(exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
		systemctl is-active --quiet "$2" || break
		sleep 0.2
	done
	fail "nothing listens on port $1"
}

systemd-run --quiet --unit=registry docker-registry serve /srv/registry.yml || fail "no registry"
port 5000 registry
page install-start
port 8082 builderd
page first-build
id=$(builderd-cli list-builds --json | grep -o 'build-[0-9a-f]\{32\}' | head -n 1)

echo "== build"
builderd-cli get-build "$id" --json | tr -d '\n'
echo
echo "== process"
grep -E '^(Uid|Cap[A-Za-z]+|NoNewPrivs|Seccomp):' "/proc/$(systemctl show -P MainPID builderd)/status"
echo "== files"
stat -c '%U %a %n' /opt/builderd/* /opt/builderd/rootfs/*/*.ext4 /var/log/builderd/* /etc/builderd
echo "== audit"
grep CreateBuild /var/log/builderd/audit.log
echo "== journal"
journalctl --no-pager -o cat -u builderd

page doctor
page backup
builderd-cli delete-build "$id" || fail "the build cannot be deleted"
builderd-cli get-build "$id" && fail "the build is still there"
# The page has a day of its own.
sed -i "s/2026-01-31/$(date +%F)/" /srv/page/restore.*
page restore
port 8082 builderd
echo "== restored"
builderd-cli get-build "$id" --json | tr -d '\n'
echo

page tokens
cat >>/etc/builderd/builderd.env <<-SETTINGS
	UNKEY_BUILDERD_AUTH_MODE=bearer
	UNKEY_BUILDERD_AUTH_TOKENS_FILE=/etc/builderd/tokens
SETTINGS
page upgrade
port 8082 builderd
builderd-cli list-builds && fail "a caller without a token was let in"
# shellcheck disable=SC2154 # The page sets it.
UNKEY_BUILDERD_TOKEN=$token builderd-cli list-builds >/dev/null || fail "the token is refused"
echo "== tokens are asked for"

echo "== stop"
systemctl stop builderd
systemctl show builderd -p ActiveState -p Result
find /sys/fs/cgroup -name 'builderd*'

# The same unit with what the page warns of.
sed -e 's/^Type=.*/Type=oneshot\nTimeoutStartSec=120\nRestrictNamespaces=yes/; s/^Restart=.*//' \
	/usr/lib/systemd/system/builderd.service >/run/systemd/system/tight.service
systemctl daemon-reload
echo "== tight"
systemctl start tight && fail "it starts without namespaces"
systemctl show tight -p ExecMainStatus
journalctl --no-pager -o cat -u tight
echo "== all done"
