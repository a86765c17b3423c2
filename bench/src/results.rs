//! What was measured so far, kept on disk so that a run can be continued.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::{floor::Floor, host::Host};

/// One run of one thing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Seconds on the wall.
    pub(crate) wall: f64,
    /// CPU seconds of all processes that took part.
    pub(crate) cpu: f64,
    /// The most memory of all of them at one time.
    pub(crate) peak_bytes: Option<u64>,
    /// What else is known, by name.
    #[serde(default)]
    pub(crate) more: BTreeMap<String, f64>,
}

/// All runs of one session.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) host: Host,
    pub(crate) command: String,
    /// By fixture and name, as `nginx/disk`.
    pub(crate) samples: BTreeMap<String, Vec<Sample>>,
    pub(crate) floors: BTreeMap<String, Vec<Floor>>,
    /// Rounds done of each stage, by fixture and stage.
    pub(crate) rounds: BTreeMap<String, usize>,
    /// Stages that could not run, and why.
    pub(crate) absent: BTreeMap<String, String>,
    /// Compressed bytes by fixture.
    pub(crate) sizes: BTreeMap<String, u64>,
    #[serde(skip)]
    path: PathBuf,
}

impl Results {
    pub(crate) fn new(path: &Path, host: Host, command: String) -> Self {
        Self {
            host,
            command,
            samples: BTreeMap::new(),
            floors: BTreeMap::new(),
            rounds: BTreeMap::new(),
            absent: BTreeMap::new(),
            sizes: BTreeMap::new(),
            path: path.to_owned(),
        }
    }

    /// Puts what an earlier session left beside: what took half an hour to measure is not lost by a call too many.
    pub(crate) fn put_aside(path: &Path) -> anyhow::Result<()> {
        let Ok(kept) = fs::metadata(path).and_then(|kept| kept.modified()) else {
            return Ok(());
        };
        let seconds = kept
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |age| age.as_secs());
        let aside = path.with_extension(format!("{seconds}.json"));
        fs::rename(path, &aside).with_context(|| format!("failed to rename {}", path.display()))?;
        println!("what was measured before is in {}", aside.display());
        Ok(())
    }

    /// What an earlier session left, when it measured the same commit. What could not run then is tried again.
    pub(crate) fn resume(path: &Path, host: &Host) -> Option<Self> {
        let mut results: Self = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        path.clone_into(&mut results.path);
        results.absent.clear();
        (results.host.commit == host.commit && results.host.cpu == host.cpu).then_some(results)
    }

    pub(crate) fn add(&mut self, fixture: &str, name: &str, sample: Sample) {
        self.samples
            .entry(format!("{fixture}/{name}"))
            .or_default()
            .push(sample);
    }

    pub(crate) fn save(&self) -> anyhow::Result<()> {
        let unfinished = self.path.with_extension("unfinished");
        fs::write(&unfinished, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&unfinished, &self.path))
            .with_context(|| format!("failed to write {}", self.path.display()))
    }

    pub(crate) fn get(&self, fixture: &str, name: &str) -> &[Sample] {
        self.samples
            .get(&format!("{fixture}/{name}"))
            .map_or(&[], Vec::as_slice)
    }

    /// The median of what `pick` takes from each run.
    pub(crate) fn median(
        &self,
        fixture: &str,
        name: &str,
        pick: impl Fn(&Sample) -> Option<f64>,
    ) -> Option<f64> {
        median(self.get(fixture, name).iter().filter_map(pick).collect())
    }

    pub(crate) fn wall(&self, fixture: &str, name: &str) -> Option<f64> {
        self.median(fixture, name, |sample| Some(sample.wall))
    }

    pub(crate) fn more(&self, fixture: &str, name: &str, what: &str) -> Option<f64> {
        self.median(fixture, name, |sample| sample.more.get(what).copied())
    }

    pub(crate) fn floor(&self, fixture: &str, pick: impl Fn(&Floor) -> f64) -> Option<f64> {
        median(self.floors.get(fixture)?.iter().map(pick).collect())
    }
}

/// The value in the middle, or the mean of the two there.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => values.get(middle).copied(),
        _ => Some(f64::midpoint(*values.get(middle - 1)?, *values.get(middle)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        for (name, values, expected) in [
            ("none", vec![], None),
            ("one", vec![3.0], Some(3.0)),
            ("odd", vec![9.0, 1.0, 2.0], Some(2.0)),
            ("even", vec![4.0, 1.0, 2.0, 9.0], Some(3.0)),
        ] {
            assert_eq!(median(values), expected, "{name}");
        }
    }
}
