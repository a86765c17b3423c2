//! Preserved paths that lead through symbolic links.
//!
//! Patterns go by the names in the tree, and people by the paths that programs use: on Debian `/lib/tool` is
//! `/usr/lib/tool`. A path without wildcards therefore also preserves what it leads to.

use std::collections::HashSet;

use rootfs::{InodeId, InodeKind, Tree};

/// Characters that mean something in a pattern of `.gitignore`, or in our addition to it.
const SPECIAL: [char; 9] = ['*', '?', '[', ']', '{', '}', '\\', '!', '#'];

/// What [`through_links`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Further patterns, for the places that paths lead to.
    pub(super) patterns: Vec<String>,
    /// Paths that lead nowhere.
    pub(super) absent: Vec<String>,
}

/// Follows the symbolic links in those of `patterns` that are plain paths.
pub(super) fn through_links(tree: &Tree, patterns: &[String]) -> Found {
    let mut found = Found::default();
    let mut wanted: HashSet<InodeId> = HashSet::new();
    for pattern in patterns {
        let path = pattern.trim_end().trim_end_matches('/');
        // Without a slash a pattern is a name that may be anywhere.
        if !path.contains('/') || path.contains(SPECIAL) {
            continue;
        }
        let Some(named) = tree.lookup(path.as_bytes()) else {
            found.absent.push(pattern.clone());
            continue;
        };
        if has_link(tree, path) {
            wanted.insert(named);
            wanted.extend(tree.resolve(path.as_bytes()));
        }
    }
    if wanted.is_empty() {
        return found;
    }
    for (path, id) in tree.walk().skip(1) {
        // A name that is not UTF-8 cannot stand in a pattern.
        if wanted.contains(&id)
            && let Ok(path) = str::from_utf8(&path)
            && !path.contains(['\n', '\r'])
        {
            found.patterns.push(literal(path));
        }
    }
    found
}

/// Whether a part of the path is a symbolic link.
fn has_link(tree: &Tree, path: &str) -> bool {
    let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
    ends.filter_map(|end| tree.lookup(&path.as_bytes()[..end]))
        .any(|id| matches!(tree.inode(id).kind, InodeKind::Symlink(_)))
}

/// A pattern that means this path of the tree and no other.
fn literal(path: &str) -> String {
    let mut pattern = String::from("/");
    for character in path.trim_start_matches('/').chars() {
        if SPECIAL.contains(&character) || character == ' ' {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use rootfs::{Metadata, edit::Excludes, tree::FileContent};

    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::new();
        let directory = Metadata::root(0o755);
        tree.create_directories(b"/usr/lib/x [1]", &directory).unwrap();
        tree.create_directories(b"/usr/bin", &directory).unwrap();
        for path in [
            "/usr/lib/tool",
            "/usr/lib/other",
            "/usr/lib/x [1]/a",
            "/usr/bin/python3.11",
        ] {
            tree.put_file(
                path.as_bytes(),
                Metadata::root(0o755),
                FileContent::inline(*b"text"),
            )
            .unwrap();
        }
        for (path, target) in [
            ("/lib", "usr/lib"),
            ("/usr/bin/python3", "python3.11"),
            ("/odd", "usr/lib/x [1]"),
        ] {
            tree.put_symlink(path.as_bytes(), Metadata::root(0o777), target.as_bytes())
                .unwrap();
        }
        tree
    }

    #[test]
    fn what_a_path_leads_to_stays() {
        for (preserve, stays, goes) in [
            ("/lib/tool", "/usr/lib/tool", "/usr/lib/other"),
            ("lib/tool", "/usr/lib/tool", "/usr/lib/other"),
            ("/usr/bin/python3", "/usr/bin/python3.11", "/usr/lib/tool"),
            ("/odd", "/usr/lib/x [1]/a", "/usr/lib/tool"),
            ("/odd/a", "/usr/lib/x [1]/a", "/usr/lib/tool"),
        ] {
            let mut tree = tree();
            let mut patterns = vec![preserve.to_owned()];
            let found = through_links(&tree, &patterns);
            assert!(found.absent.is_empty(), "{preserve}");
            patterns.extend(found.patterns);
            let excludes = Excludes::new(["/usr/**"], patterns.iter().map(String::as_str)).unwrap();
            let _ = excludes.apply(&mut tree);
            assert!(tree.lookup(stays.as_bytes()).is_some(), "{preserve}: {stays}");
            assert!(tree.lookup(goes.as_bytes()).is_none(), "{preserve}: {goes}");
        }
    }

    #[test]
    fn plain_paths_and_patterns_need_nothing_more() {
        let found = through_links(
            &tree(),
            &["/usr/lib/tool", "/lib/*", "tool", "/usr/lib/", "/nowhere/at/all"].map(str::to_owned),
        );
        assert!(found.patterns.is_empty(), "{found:?}");
        assert_eq!(found.absent, ["/nowhere/at/all"]);
    }
}
