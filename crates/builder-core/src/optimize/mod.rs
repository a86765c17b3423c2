//! Making an image smaller, as far as a request asks for it: edits on the tree, after the last layer and before
//! anything of ours is added.
//!
//! Rules run in the order of [`Rule`]; what a *preserve* pattern names is touched by none of them. Each says how much it
//! saved. All of this happens in the worker that writes the image: the content of files is read there and nowhere else.

mod elf;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod preserve;
mod rules;
mod strip;

use std::{fmt, fs::File, io};

use rootfs::{
    Tree,
    edit::{Excludes, PatternError},
    pack::Packs,
};
use serde::{Deserialize, Serialize};

#[cfg(feature = "service")]
use crate::request::{BuildRequest, Optimization};

/// Patterns of one list of a request.
pub const MAX_PATTERNS: usize = 512;

/// Bytes of all patterns of one list. Compiling patterns costs time and memory in proportion, and happens before anything
/// is known of the one who asks.
pub const MAX_LIST_BYTES: usize = 8 * 1024;

/// Bytes of one pattern.
pub const MAX_PATTERN_BYTES: usize = 1024;

/// A way of making an image smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Rule {
    /// What the request's own patterns name.
    ExcludePatterns,
    /// Documentation.
    RemoveDocs,
    /// What package managers can fetch again.
    RemoveCache,
    /// What only debuggers read in programs and libraries.
    StripDebugSymbols,
}

impl Rule {
    /// Its name in requests, logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ExcludePatterns => "exclude_patterns",
            Self::RemoveDocs => "remove_docs",
            Self::RemoveCache => "remove_cache",
            Self::StripDebugSymbols => "strip_debug_symbols",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// What one rule saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Savings {
    /// The rule.
    pub rule: Rule,
    /// Names that are gone, directories included; for [`Rule::StripDebugSymbols`], files that became smaller.
    pub files: u64,
    /// Bytes that these files had, or no longer have. A file with several names counts once.
    pub bytes: u64,
}

/// What is asked for, as it travels to the worker: the lists of a request that mean the same put together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) remove_docs: bool,
    pub(crate) remove_cache: bool,
    pub(crate) strip_debug_symbols: bool,
    pub(crate) exclude: Vec<String>,
    pub(crate) preserve: Vec<String>,
}

impl Settings {
    /// What `request` asks for.
    #[cfg(feature = "service")]
    pub(crate) fn of(request: &BuildRequest) -> Self {
        let Optimization {
            strip_debug_symbols,
            remove_docs,
            remove_cache,
            exclude_patterns,
            preserve_paths,
        } = request.target.optimization.clone();
        Self {
            remove_docs,
            remove_cache,
            strip_debug_symbols,
            exclude: [exclude_patterns, request.extract.exclude_patterns.clone()].concat(),
            preserve: [request.target.preserve_paths.clone(), preserve_paths].concat(),
        }
    }

    /// Whether the tree stays as it is.
    pub(crate) fn is_nothing(&self) -> bool {
        !(self.remove_docs || self.remove_cache || self.strip_debug_symbols) && self.exclude.is_empty()
    }
}

/// Whether the patterns can be understood.
///
/// # Errors
/// The first one that cannot, or what is too much.
pub fn check_patterns(patterns: &[String]) -> Result<(), PatternError> {
    for pattern in patterns {
        let refused = |message: &str| PatternError {
            pattern: pattern.chars().take(80).collect(),
            message: message.to_owned(),
        };
        if pattern.len() > MAX_PATTERN_BYTES {
            return Err(refused("longer than 1024 bytes"));
        }
        if pattern.trim().is_empty() || pattern.starts_with('#') {
            return Err(refused("it names nothing"));
        }
    }
    let bytes: usize = patterns.iter().map(String::len).sum();
    if bytes > MAX_LIST_BYTES {
        return Err(PatternError {
            pattern: String::new(),
            message: format!(
                "the patterns of a list may have {MAX_LIST_BYTES} bytes together, these have {bytes}"
            ),
        });
    }
    // Once, all together: each may be fine and all together too much. The error names the one that is not.
    Excludes::new(patterns.iter().map(String::as_str), [])?;
    Ok(())
}

/// An optimization cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OptimizeError {
    /// The patterns were checked when the request came in.
    #[error("a pattern of the request cannot be read")]
    Pattern(#[from] PatternError),
    /// A body could not be read, or a smaller one not be written.
    #[error("a program could not be made smaller")]
    Io(#[from] io::Error),
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Optimized {
    /// For each rule that was asked for.
    pub(crate) savings: Vec<Savings>,
    /// Lines for the log.
    pub(crate) notes: Vec<String>,
}

/// Applies what `settings` ask for. New content goes to `scratch`, which becomes a pack of its own.
pub(crate) fn optimize(
    settings: &Settings,
    tree: &mut Tree,
    packs: &mut Packs,
    scratch: Option<File>,
) -> Result<Optimized, OptimizeError> {
    let mut done = Optimized::default();
    // Before anything is gone that a path may lead through.
    let linked = preserve::through_links(tree, &settings.preserve);
    for path in &linked.absent {
        done.notes
            .push(format!("Preserved path {path:?} is not in the image"));
    }
    let preserve = || {
        settings
            .preserve
            .iter()
            .chain(&linked.patterns)
            .map(String::as_str)
    };
    let own = Excludes::new(settings.exclude.iter().map(String::as_str), preserve())?;
    if !settings.exclude.is_empty() {
        let excluded = own.apply(tree);
        for rule in &excluded.rules {
            done.notes.push(format!(
                "Pattern {:?} left out {} names, {} bytes",
                rule.pattern, rule.names, rule.bytes
            ));
        }
        done.savings.push(sum(Rule::ExcludePatterns, &excluded.rules));
    }
    if settings.remove_docs {
        let kept = rules::DOCS_KEPT.iter().copied().chain(preserve());
        let excluded = Excludes::new(rules::DOCS.iter().copied(), kept)?.apply(tree);
        done.savings.push(sum(Rule::RemoveDocs, &excluded.rules));
    }
    if settings.remove_cache {
        let excluded = Excludes::new(rules::CACHES.iter().copied(), preserve())?.apply(tree);
        done.savings.push(sum(Rule::RemoveCache, &excluded.rules));
    }
    if settings.strip_debug_symbols {
        let scratch = scratch.ok_or_else(|| io::Error::other("no scratch file was given"))?;
        let preserved = own.preserved(tree);
        let stripped = strip::strip(tree, packs, scratch, &preserved)?;
        done.notes.extend(stripped.notes);
        done.savings.push(Savings {
            rule: Rule::StripDebugSymbols,
            files: stripped.files,
            bytes: stripped.bytes,
        });
    }
    Ok(done)
}

fn sum(rule: Rule, patterns: &[rootfs::edit::RuleSavings]) -> Savings {
    let add = |mut sum: Savings, pattern: &rootfs::edit::RuleSavings| {
        sum.files += pattern.names;
        sum.bytes = sum.bytes.saturating_add(pattern.bytes);
        sum
    };
    let nothing = Savings {
        rule,
        files: 0,
        bytes: 0,
    };
    patterns.iter().fold(nothing, add)
}

#[cfg(test)]
mod tests;
