//! What is promised, beside what was measured.

use crate::{
    floor::Floor,
    peers::Peer,
    results::{Results, Sample},
};

const MIB: f64 = 1_048_576.0;

/// Connections of a download to a host, at most.
const CONNECTIONS: f64 = 16.0;

/// Memory that a download may take: so much, and 64 KiB for each connection.
const PULL_MIB: f64 = 32.0 + CONNECTIONS * 64.0 / 1024.0;

/// A promise.
pub(crate) struct Target {
    what: String,
    bound: Bound,
    /// `None` when it was not measured.
    measured: Option<f64>,
    unit: &'static str,
}

#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    fn at_most(what: impl Into<String>, bound: f64, measured: Option<f64>) -> Self {
        Self {
            what: what.into(),
            bound: Bound::AtMost(bound),
            measured,
            unit: "×",
        }
    }

    fn at_least(what: impl Into<String>, bound: f64, measured: Option<f64>) -> Self {
        Self {
            what: what.into(),
            bound: Bound::AtLeast(bound),
            measured,
            unit: "×",
        }
    }

    const fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    fn verdict(&self) -> String {
        let Some(measured) = self.measured else {
            return "not measured".to_owned();
        };
        let (is_met, bound) = match self.bound {
            Bound::AtMost(bound) => (measured <= bound, bound),
            Bound::AtLeast(bound) => (measured >= bound, bound),
        };
        if is_met {
            "met".to_owned()
        } else {
            format!("**missed by {:.0} %**", 100.0 * (measured / bound - 1.0).abs())
        }
    }

    fn row(&self) -> String {
        let bound = match self.bound {
            Bound::AtMost(bound) => format!("≤ {bound} {}", self.unit),
            Bound::AtLeast(bound) => format!("≥ {bound} {}", self.unit),
        };
        let measured = self.measured.map_or_else(
            || "–".to_owned(),
            |measured| format!("{measured:.2} {}", self.unit),
        );
        format!("| {} | {bound} | {measured} | {} |\n", self.what, self.verdict())
    }
}

/// All targets as a table.
pub(crate) fn table(results: &Results) -> String {
    let rows: String = targets(results).iter().map(Target::row).collect();
    format!("| target | wanted | measured | |\n|---|---|---|---|\n{rows}")
}

fn targets(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    for fixture in ["nginx", "big"] {
        builds(results, fixture, &mut targets);
    }
    for fixture in ["nginx", "big", "many", "flat"] {
        sharing(results, fixture, &mut targets);
    }
    let wall = |fixture, name| results.wall(fixture, name);
    for (fixture, bound) in [("many", 3.0), ("large", 3.0), ("flat", 50.0)] {
        targets.push(Target::at_least(
            format!("writer alone, faster than `mke2fs -d`: {fixture}"),
            bound,
            ratio(wall(fixture, "mke2fs"), wall(fixture, "writer")),
        ));
    }
    let peaks = ["first", "second", "registry", "ro"].map(|name| peak(results, "big", name));
    let peak_of_builds = peaks.into_iter().flatten().reduce(f64::max);
    targets.push(Target::at_most("peak memory of all processes: big", 250.0, peak_of_builds).unit("MiB"));
    downloads(results, &mut targets);
    targets
}

fn builds(results: &Results, fixture: &str, targets: &mut Vec<Target>) {
    let wall = |name| results.wall(fixture, name);
    let floor = |pick: fn(&Floor) -> f64| on_all_cores(results, fixture, pick);
    targets.push(Target::at_most(
        format!("blobs on disk → image, of the streaming floor: {fixture}"),
        1.5,
        ratio(wall("first"), floor(Floor::streaming)),
    ));
    targets.push(Target::at_most(
        format!("blobs on disk → image, of the libdeflate floor (to be tried): {fixture}"),
        1.3,
        ratio(wall("first"), floor(Floor::whole)),
    ));
    for (peer, bound) in [
        (Peer::Docker, 8.0),
        (Peer::Umoci, 8.0),
        (Peer::Containerd, 5.0),
        (Peer::Crane, 3.5),
    ] {
        targets.push(Target::at_least(
            format!("registry → image, faster than {}: {fixture}", peer.words()),
            bound,
            ratio(wall(peer.name()), wall("registry")),
        ));
    }
    // The two alone: the download, and the image from blobs that are there.
    for (place, prefix) in [("loopback", ""), ("8 MB/s a connection", "slow-")] {
        let of = |name: &str| results.wall(fixture, &format!("{prefix}{name}"));
        let slower = of("pull-durable")
            .zip(wall("first"))
            .map(|(pull, image)| pull.max(image));
        targets.push(Target::at_most(
            format!("registry → image, of the slower of download and image alone ({place}): {fixture}"),
            1.15,
            ratio(of("registry"), slower),
        ));
    }
}

/// The second image, each until its last content was in it. The SHA-256 of the whole image runs beside that and is not
/// waited for until then; what is left of it, and the disk, come after.
fn sharing(results: &Results, fixture: &str, targets: &mut Vec<Target>) {
    let is_measured = ["first", "reflink-first"]
        .iter()
        .any(|name| results.wall(fixture, name).is_some());
    if is_measured && matches!(fixture, "nginx" | "big") {
        let without = |name: &str| {
            let all = results.more(fixture, name, "total_duration_ms")?;
            Some(all - results.more(fixture, name, "optimize_duration_ms")?)
        };
        for (kind, prefix, bound) in [("XFS with reflinks", "reflink-", 0.1), ("ext4", "", 0.3)] {
            targets.push(Target::at_most(
                format!("second image, of the first, until all content is in it ({kind}): {fixture}"),
                bound,
                ratio(
                    without(&format!("{prefix}second")),
                    without(&format!("{prefix}first")),
                ),
            ));
        }
        targets.push(
            Target::at_most(
                format!("second image, fold to emit (XFS with reflinks): {fixture}"),
                100.0,
                results.more(fixture, "reflink-second", "build_duration_ms"),
            )
            .unit("ms"),
        );
    }
    targets.push(
        Target::at_least(
            format!("chunks of the second image that the first has: {fixture}"),
            95.0,
            results.more(fixture, "second", "shared_percent"),
        )
        .unit("%"),
    );
}

fn downloads(results: &Results, targets: &mut Vec<Target>) {
    let wall = |fixture, name| results.wall(fixture, name);
    targets.push(Target::at_least(
        "a blob of 235 MB, of the speed of `curl -o`",
        0.9,
        ratio(wall("blob", "curl"), wall("blob", "pull")),
    ));
    targets.push(Target::at_least(
        "a blob at 50 MB/s a connection: four ranges, of the speed of one",
        3.5,
        ratio(
            results.more("blob", "throttled-1", "transfer"),
            results.more("blob", "throttled-4", "transfer"),
        ),
    ));
    targets.push(Target::at_least(
        "download, faster than skopeo copy to a directory: big",
        2.0,
        ratio(wall("big", "skopeo"), wall("big", "pull")),
    ));
    for fixture in ["blob", "big"] {
        targets.push(
            Target::at_most(
                format!("peak memory of a download: {fixture}"),
                PULL_MIB,
                peak(results, fixture, "pull"),
            )
            .unit("MiB"),
        );
    }
}

/// CPU seconds of a floor, spread over all cores.
pub(crate) fn on_all_cores(results: &Results, fixture: &str, pick: fn(&Floor) -> f64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "no machine has 2^53 cores")]
    let cores = results.host.cores as f64;
    Some(results.floor(fixture, pick)? / cores)
}

/// The largest peak of all runs, in MiB.
pub(crate) fn peak(results: &Results, fixture: &str, name: &str) -> Option<f64> {
    let bytes = |sample: &Sample| sample.peak_bytes;
    let highest = results.get(fixture, name).iter().filter_map(bytes).max()?;
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let mib = highest as f64 / MIB;
    Some(mib)
}

fn ratio(above: Option<f64>, below: Option<f64>) -> Option<f64> {
    let below = below.filter(|below| *below > 0.0)?;
    Some(above? / below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_says_whether_it_was_met_and_by_how_much_it_was_not() {
        for (name, target, verdict) in [
            ("met", Target::at_most("", 2.0, Some(1.5)), "met"),
            ("exactly", Target::at_least("", 2.0, Some(2.0)), "met"),
            (
                "too slow",
                Target::at_least("", 2.0, Some(1.5)),
                "**missed by 25 %**",
            ),
            (
                "too much",
                Target::at_most("", 2.0, Some(3.0)),
                "**missed by 50 %**",
            ),
            ("unknown", Target::at_most("", 2.0, None), "not measured"),
        ] {
            assert_eq!(target.verdict(), verdict, "{name}");
        }
    }
}
