# Building and installing. Everything else is `cargo xtask`.

CARGO ?= cargo
DESTDIR ?=
PREFIX ?= /usr
SYSCONFDIR ?= /etc
UNITDIR ?= $(PREFIX)/lib/systemd/system
# Where the binaries are; what `make build` makes by default.
BINARIES ?= $(or $(CARGO_TARGET_DIR),target)/release
INSTALL ?= install

.PHONY: all build install uninstall test

all: build

build:
	$(CARGO) build --release --locked --package builderd --bins

# Places files and nothing else, so that it works in a clean root. What is to be done on a running system is said at the end.
# A configuration that is there is left alone.
install:
	@test -x $(BINARIES)/builderd -a -x $(BINARIES)/builderd-cli || { echo "no binaries in $(BINARIES): run make build first" >&2; exit 1; }
	$(INSTALL) -D -m 0755 $(BINARIES)/builderd $(DESTDIR)$(PREFIX)/bin/builderd
	$(INSTALL) -D -m 0755 $(BINARIES)/builderd-cli $(DESTDIR)$(PREFIX)/bin/builderd-cli
	$(INSTALL) -D -m 0644 deploy/systemd/builderd.service $(DESTDIR)$(UNITDIR)/builderd.service
	$(INSTALL) -D -m 0644 deploy/systemd/builderd.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/builderd.conf
	$(INSTALL) -D -m 0644 deploy/systemd/builderd.tmpfiles $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/builderd.conf
	$(INSTALL) -D -m 0644 deploy/builderd.env.example $(DESTDIR)$(PREFIX)/share/doc/builderd/builderd.env.example
	$(INSTALL) -D -m 0644 README.md $(DESTDIR)$(PREFIX)/share/doc/builderd/README.md
	$(INSTALL) -D -m 0644 deploy/prometheus/builderd.rules.yml $(DESTDIR)$(PREFIX)/share/builderd/prometheus/builderd.rules.yml
	$(INSTALL) -D -m 0644 deploy/prometheus/prometheus.yml $(DESTDIR)$(PREFIX)/share/builderd/prometheus/prometheus.yml
	$(INSTALL) -D -m 0644 deploy/grafana/builderd.json $(DESTDIR)$(PREFIX)/share/builderd/grafana/builderd.json
	$(INSTALL) -D -m 0644 deploy/grafana/builderd-tenants.json $(DESTDIR)$(PREFIX)/share/builderd/grafana/builderd-tenants.json
	@test -e $(DESTDIR)$(SYSCONFDIR)/builderd/builderd.env || \
		$(INSTALL) -D -m 0640 deploy/builderd.env.example $(DESTDIR)$(SYSCONFDIR)/builderd/builderd.env
	@echo "Now: systemd-sysusers; systemd-tmpfiles --create; edit $(SYSCONFDIR)/builderd/builderd.env; systemctl daemon-reload; systemctl enable --now builderd"

# Removes what install placed; configuration and state (/opt/builderd) stay.
uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/builderd $(DESTDIR)$(PREFIX)/bin/builderd-cli
	rm -f $(DESTDIR)$(UNITDIR)/builderd.service
	rm -f $(DESTDIR)$(PREFIX)/lib/sysusers.d/builderd.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/builderd.conf
	rm -rf $(DESTDIR)$(PREFIX)/share/builderd $(DESTDIR)$(PREFIX)/share/doc/builderd

test:
	$(CARGO) xtask test
