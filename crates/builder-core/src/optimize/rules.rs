//! What the rules with a name mean, as patterns of [`rootfs::edit::Excludes`].
//!
//! A directory that packages expect stays, empty: what goes is its content (`/**`). The lists name places, not kinds
//! of files, so that nothing is taken that happens to look alike elsewhere.

/// Documentation for people.
pub(super) const DOCS: &[&str] = &[
    "/usr/share/doc/**",
    "/usr/share/man/**",
    "/usr/share/info/**",
    "/usr/share/gtk-doc/**",
    "/usr/share/help/**",
    "/usr/share/doc-base/**",
    "/usr/local/share/doc/**",
    "/usr/local/share/man/**",
    "/usr/local/share/info/**",
    // In Debian a link to share/man, which stays as it is; elsewhere a directory.
    "/usr/local/man/**",
    "/usr/man/**",
    "/usr/doc/**",
];

/// Licences lie among the documentation, and have to go with the programs that they are for.
pub(super) const DOCS_KEPT: &[&str] = &[
    "/usr/share/doc/**/copyright",
    "/usr/share/doc/**/copyright.gz",
    "/usr/share/doc/**/COPYING*",
    "/usr/share/doc/**/LICENSE*",
    "/usr/share/doc/**/LICENCE*",
    "/usr/share/doc/**/NOTICE*",
];

/// What package managers have fetched and can fetch again.
pub(super) const CACHES: &[&str] = &[
    // apt
    "/var/cache/apt/**",
    "/var/lib/apt/lists/**",
    // apk
    "/var/cache/apk/**",
    "/etc/apk/cache/**",
    // dnf, yum, zypper
    "/var/cache/dnf/**",
    "/var/cache/libdnf5/**",
    "/var/cache/yum/**",
    "/var/lib/dnf/repos/*/packages/**",
    "/var/cache/zypp/**",
    // pacman
    "/var/cache/pacman/pkg/**",
    // In the XDG directory by name: others keep programs (Playwright's browsers) and data (models) there that nothing
    // fetches again while an image runs.
    "/root/.cache/{pip,uv,pypoetry,pipenv,go-build,yarn,pnpm,node-gyp,composer,bundle,ccache,helm}/**",
    "/home/*/.cache/{pip,uv,pypoetry,pipenv,go-build,yarn,pnpm,node-gyp,composer,bundle,ccache,helm}/**",
    // npm
    "/root/.npm/_cacache/**",
    "/root/.npm/_logs/**",
    "/home/*/.npm/_cacache/**",
    "/home/*/.npm/_logs/**",
    // yarn of the official Node images
    "/usr/local/share/.cache/**",
    // gem, bundler
    "/usr/local/bundle/cache/**",
    "/usr/local/lib/ruby/gems/*/cache/**",
    "/var/lib/gems/*/cache/**",
    // cargo
    "/root/.cargo/registry/cache/**",
    "/usr/local/cargo/registry/cache/**",
    // go
    "/root/go/pkg/mod/cache/download/**",
    "/go/pkg/mod/cache/download/**",
    // composer before XDG
    "/root/.composer/cache/**",
];

#[cfg(test)]
mod tests {
    use rootfs::{Metadata, Tree, edit::Excludes, tree::FileContent};

    use super::*;

    fn tree(paths: &[&str]) -> Tree {
        let mut tree = Tree::new();
        for path in paths {
            let parent = path.rsplit_once('/').unwrap().0;
            tree.create_directories(parent.as_bytes(), &Metadata::root(0o755))
                .unwrap();
            tree.put_file(
                path.as_bytes(),
                Metadata::root(0o644),
                FileContent::inline(*b"text"),
            )
            .unwrap();
        }
        tree
    }

    #[test]
    fn documentation_goes_and_licences_stay() {
        let mut tree = tree(&[
            "/usr/share/doc/bash/copyright",
            "/usr/share/doc/bash/README.gz",
            "/usr/share/doc/empty/changelog.gz",
            "/usr/share/man/man1/bash.1.gz",
            "/usr/share/dict/words",
            "/srv/doc/own",
        ]);
        let _ = Excludes::new(DOCS.iter().copied(), DOCS_KEPT.iter().copied())
            .unwrap()
            .apply(&mut tree);
        for (path, stays) in [
            ("/usr/share/doc/bash/copyright", true),
            ("/usr/share/doc/bash/README.gz", false),
            ("/usr/share/doc/empty", false),
            ("/usr/share/man", true),
            ("/usr/share/man/man1", false),
            ("/usr/share/dict/words", true),
            ("/srv/doc/own", true),
        ] {
            assert_eq!(tree.lookup(path.as_bytes()).is_some(), stays, "{path}");
        }
    }

    #[test]
    fn caches_go_and_what_is_no_cache_stays() {
        let mut tree = tree(&[
            "/var/cache/apt/archives/bash.deb",
            "/var/lib/apt/lists/deb.debian.org_Packages",
            "/var/lib/apt/extended_states",
            "/var/cache/apk/APKINDEX.tar.gz",
            "/root/.cache/pip/http/a",
            "/home/app/.cache/go-build/00/a",
            "/root/.cache/ms-playwright/chromium/chrome",
            "/home/app/.npm/_cacache/index",
            "/home/app/.npmrc",
            "/var/cache/nginx/proxy",
            "/var/log/syslog",
            "/tmp/left",
        ]);
        let _ = Excludes::new(CACHES.iter().copied(), [])
            .unwrap()
            .apply(&mut tree);
        for (path, stays) in [
            ("/var/cache/apt", true),
            ("/var/cache/apt/archives", false),
            ("/var/lib/apt/lists", true),
            ("/var/lib/apt/lists/deb.debian.org_Packages", false),
            ("/var/lib/apt/extended_states", true),
            ("/var/cache/apk/APKINDEX.tar.gz", false),
            ("/root/.cache/pip/http", false),
            ("/home/app/.cache/go-build/00", false),
            ("/root/.cache/ms-playwright/chromium/chrome", true),
            ("/home/app/.npm/_cacache/index", false),
            ("/home/app/.npmrc", true),
            ("/var/cache/nginx/proxy", true),
            ("/var/log/syslog", true),
            ("/tmp/left", true),
        ] {
            assert_eq!(tree.lookup(path.as_bytes()).is_some(), stays, "{path}");
        }
    }
}
