//! Leaving out what patterns name.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};

use crate::{InodeId, Tree};

/// Patterns of what to leave out of a tree, and of what to keep all the same.
///
/// The syntax is that of `.gitignore`, the tree's root standing for the repository: `*.pyc` anywhere, `/var/cache`
/// at the root only, `doc/` directories only, `usr/share/**/*.gz`, `!name` to take back an earlier pattern. A directory
/// that matches goes with everything below it. One thing is added: `{a,b}` stands for `a` and `b`.
///
/// What a *preserve* pattern matches stays whatever the other patterns say, with everything below it; the directories
/// above it stay too, but what else is in them does not.
#[derive(Clone, Debug)]
pub struct Excludes {
    exclude: Gitignore,
    preserve: Gitignore,
    rules: Vec<String>,
}

/// A pattern that is not in the syntax of `.gitignore`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid pattern {pattern:?}: {message}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub message: String,
}

/// What was left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excluded {
    /// What each exclude pattern took away, in the order in which the patterns were given.
    pub rules: Vec<RuleSavings>,
    /// Names that a preserve pattern matched, with those below; directories above them are not counted.
    pub names_preserved: u64,
}

/// What one pattern took away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSavings {
    /// The pattern as it was given.
    pub pattern: String,
    /// Names that are gone.
    pub names: u64,
    /// Sizes in bytes of the regular files that have no name left. When several patterns take the names of one file,
    /// the one that takes the last name counts it.
    pub bytes: u64,
}

/// What the patterns say of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    Preserve,
    /// Left out by that rule.
    Exclude(usize),
}

impl Excludes {
    /// Takes both lists. Empty patterns and comments (`#`) are ignored, as `.gitignore` has it.
    ///
    /// # Errors
    /// The first pattern that cannot be read.
    pub fn new<'a>(
        exclude: impl IntoIterator<Item = &'a str>,
        preserve: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, PatternError> {
        let rules: Vec<String> = exclude.into_iter().map(str::to_owned).collect();
        Ok(Self {
            exclude: build(rules.iter().map(String::as_str))?,
            preserve: build(preserve)?,
            rules,
        })
    }

    /// Removes from the tree what the patterns say, and counts it.
    #[must_use = "the savings belong in the build's log"]
    pub fn apply(&self, tree: &mut Tree) -> Excluded {
        let position_of: HashMap<&str, usize> = self
            .rules
            .iter()
            .enumerate()
            .rev()
            .map(|(position, rule)| (significant(rule), position))
            .collect();
        let savings = |rule: &String| RuleSavings {
            pattern: rule.clone(),
            names: 0,
            bytes: 0,
        };
        let mut excluded = Excluded {
            rules: self.rules.iter().map(savings).collect(),
            names_preserved: 0,
        };

        // The verdict on a directory is the default for what it has. A walk names a directory before its content, so
        // in reverse order the content has been dealt with when its directory's turn comes.
        let mut doomed: Vec<(InodeId, Vec<u8>, usize)> = Vec::new();
        let mut verdicts = HashMap::from([(Tree::ROOT, Verdict::Keep)]);
        let mut parents: HashMap<Vec<u8>, InodeId> = HashMap::from([(Vec::new(), Tree::ROOT)]);
        for (path, id) in tree.walk().skip(1) {
            let (above, name) = match path.iter().rposition(|&byte| byte == b'/') {
                Some(slash) => (&path[..slash], &path[slash + 1..]),
                None => (&path[..0], &path[..]),
            };
            let parent = parents[above];
            let is_directory = tree.inode(id).kind.is_directory();
            let verdict = self.verdict(&path, is_directory, verdicts[&parent], &position_of);
            if let Verdict::Exclude(rule) = verdict {
                doomed.push((parent, name.to_vec(), rule));
            }
            if verdict == Verdict::Preserve {
                excluded.names_preserved += 1;
            }
            if is_directory {
                verdicts.insert(id, verdict);
                parents.insert(path, id);
            }
        }
        for (parent, name, rule) in doomed.into_iter().rev() {
            let keeps_something = tree
                .child(parent, &name)
                .and_then(|id| tree.children(id))
                .is_some_and(|children| !children.is_empty());
            if keeps_something {
                continue;
            }
            let removed = tree.remove_name(parent, &name);
            excluded.rules[rule].names += removed.names;
            excluded.rules[rule].bytes += removed.bytes;
        }
        excluded
    }

    /// The inodes that have a name which a *preserve* pattern matches, or which lies below one that it matches.
    #[must_use]
    pub fn preserved(&self, tree: &Tree) -> HashSet<InodeId> {
        let mut preserved = HashSet::new();
        if self.preserve.is_empty() {
            return preserved;
        }
        // Directories by path: a walk names each before its content, and a directory has one name.
        let mut directories: HashSet<Vec<u8>> = HashSet::new();
        for (path, id) in tree.walk().skip(1) {
            let above = path
                .iter()
                .rposition(|&byte| byte == b'/')
                .map_or(&path[..0], |slash| &path[..slash]);
            let is_directory = tree.inode(id).kind.is_directory();
            let matched = || {
                let path = Path::new(OsStr::from_bytes(&path));
                self.preserve.matched(path, is_directory).is_ignore()
            };
            if directories.contains(above) || matched() {
                preserved.insert(id);
                if is_directory {
                    directories.insert(path);
                }
            }
        }
        preserved
    }

    fn verdict(
        &self,
        path: &[u8],
        is_directory: bool,
        inherited: Verdict,
        position_of: &HashMap<&str, usize>,
    ) -> Verdict {
        let path = Path::new(OsStr::from_bytes(path));
        if inherited == Verdict::Preserve || self.preserve.matched(path, is_directory).is_ignore() {
            return Verdict::Preserve;
        }
        if let Verdict::Exclude(_) = inherited {
            return inherited;
        }
        match self.exclude.matched(path, is_directory) {
            Match::Ignore(glob) => position_of
                .get(glob.original())
                .map_or(Verdict::Keep, |&position| Verdict::Exclude(position)),
            Match::None | Match::Whitelist(_) => Verdict::Keep,
        }
    }
}

/// A pattern without the trailing space that `.gitignore` ignores: the form in which the matcher names it.
fn significant(pattern: &str) -> &str {
    if pattern.ends_with("\\ ") {
        pattern
    } else {
        pattern.trim_end()
    }
}

fn build<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Gitignore, PatternError> {
    let mut builder = GitignoreBuilder::new("");
    for pattern in patterns {
        let error = |error: ignore::Error| PatternError {
            pattern: pattern.to_owned(),
            message: error.to_string(),
        };
        if pattern.contains(['\n', '\r', '\0']) {
            let message = "a pattern is one line without a NUL".to_owned();
            return Err(PatternError {
                pattern: pattern.to_owned(),
                message,
            });
        }
        builder.add_line(None, pattern).map_err(error)?;
    }
    builder.build().map_err(|error| PatternError {
        pattern: String::new(),
        message: error.to_string(),
    })
}
