//! `docs/benchmarks.md`: made anew each time, but for what people wrote below the mark.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Context as _;

use crate::{
    fixture::Fixture,
    floor::Floor,
    peers::Peer,
    results::{Results, Sample},
    targets,
};

/// Everything from this line on is kept.
const MARK: &str = "<!-- Written by hand from here on; `cargo xtask bench` keeps it. -->";

/// What stands below the mark before anybody wrote anything.
const BY_HAND: &str = "\n## Where the time goes\n";

/// Names of samples in the order in which they are shown, and what they are.
fn flows() -> Vec<(&'static str, &'static str)> {
    let mut flows = vec![
        ("first", "blobs on disk → image"),
        ("second", "the same with a small layer on top, after that"),
        ("again", "the first image again, after that"),
        ("reflink-first", "XFS: blobs on disk → image"),
        ("reflink-second", "XFS: the same with a small layer on top"),
        ("reflink-again", "XFS: the first image again"),
        ("ro", "blobs on disk → read-only image"),
        ("ro-plain", "the same without dm-verity"),
        ("registry", "**registry → image**"),
        ("slow-registry", "registry at 8 MB/s a connection → image"),
        (
            "slow-pull-durable",
            "download alone at 8 MB/s a connection, on the disk",
        ),
        ("pull", "download alone, not waiting for the disk"),
        ("pull-durable", "download alone, on the disk"),
        ("throttled-1", "download at 50 MB/s a connection, one"),
        ("throttled-4", "download at 50 MB/s a connection, four"),
        ("skopeo", "skopeo copy to a directory"),
        ("curl", "`curl -o`"),
        ("writer", "writer alone, from layers that are indexed"),
        ("mke2fs", "`mkfs.ext4 -d` on the same tree, unpacked before"),
    ];
    flows.extend(Peer::ALL.map(|peer| (peer.name(), peer.words())));
    flows
}

/// Writes the page to `to`, with what people wrote in `kept`.
pub(crate) fn write(results: &Results, kept: &Path, to: &Path) -> anyhow::Result<()> {
    let by_hand = fs::read_to_string(kept)
        .ok()
        .and_then(|text| Some(text.split_once(MARK)?.1.to_owned()))
        .unwrap_or_else(|| BY_HAND.to_owned());
    let page = format!("{}\n{MARK}\n{}\n", page(results), by_hand.trim_end());
    fs::write(to, page).with_context(|| format!("failed to write {}", to.display()))
}

fn page(results: &Results) -> String {
    let host = &results.host;
    let warning = host
        .warning()
        .map_or_else(String::new, |warning| format!("\n**Warning: {warning}.**\n"));
    let mut page = format!(
        "# Benchmarks

Made by `{}` on {}, at commit {}.
{warning}
Host: {}, {} cores{}, {:.0} GiB, {}, {}; load before the start {:.2}.

Wall clock, CPU and memory are those of all processes that took part, clients and daemons, the registry left out. A row has the
median of its runs, in parentheses the lowest and the highest. CPU seconds are without what the kernel's own threads do to write
pages out. Memory is the most that was seen at one time, looked at each 50 ms: pages in processes, each counted once, without the
page cache. Stores and caches are empty before each run, the registry's files are in the page cache, images are on the disk
(fsync) at the end unless a row says otherwise; starting a daemon is not counted. Runs of different flows take turns.

## Targets

{}",
        results.command,
        host.date,
        host.commit,
        host.cpu,
        host.cores,
        if host.has_sha { " with SHA instructions" } else { " **without SHA instructions**" },
        host.memory_gib,
        host.kernel,
        host.file_system,
        host.load,
        targets::table(results),
    );
    for fixture in Fixture::ALL {
        page += &of_fixture(results, fixture);
    }
    page += &peers(results);
    page
}

fn of_fixture(results: &Results, fixture: Fixture) -> String {
    let name = fixture.name();
    let rows: String = flows()
        .iter()
        .filter_map(|(flow, words)| row(words, results.get(name, flow)))
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let size = results.sizes.get(name).copied().unwrap_or(0) / 1_000_000;
    let mut text = format!(
        "
## {name}

{}, {size} MB in the registry.

| flow | seconds | CPU seconds | peak MiB | runs |
|---|---|---|---|---|
{rows}",
        words(fixture)
    );
    text += &floor(results, name);
    text += &parts(results, name);
    text
}

const fn words(fixture: Fixture) -> &'static str {
    match fixture {
        Fixture::Nginx => {
            "Debian with nginx in nine layers, with everything that layers can do to one another"
        }
        Fixture::Big => {
            "Debian with compilers, Python, Node.js and git in ten layers; gigabytes, links, deletions"
        }
        Fixture::Many => "120,000 files of 0 to 8 KiB in 1,200 directories, one layer",
        Fixture::Flat => "120,000 files of 0 to 8 KiB in one directory, one layer",
        Fixture::Large => "Eight files of 128 MiB, one layer, not compressed",
        Fixture::Blob => "One layer that does not compress",
    }
}

fn row(words: &str, samples: &[Sample]) -> Option<String> {
    let spread = |pick: fn(&Sample) -> f64| {
        let values: Vec<f64> = samples.iter().map(pick).collect();
        let low = values.iter().copied().reduce(f64::min)?;
        let high = values.iter().copied().reduce(f64::max)?;
        let middle = crate::results::median(values)?;
        Some(if samples.len() > 1 {
            format!("{middle:.2} ({low:.2}–{high:.2})")
        } else {
            format!("{middle:.2}")
        })
    };
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let peak = samples
        .iter()
        .filter_map(|sample| sample.peak_bytes)
        .max()
        .map_or_else(
            || "–".to_owned(),
            |bytes| format!("{:.0}", bytes as f64 / 1_048_576.0),
        );
    Some(format!(
        "| {words} | {} | {} | {peak} | {} |\n",
        spread(|sample| sample.wall)?,
        spread(|sample| sample.cpu)?,
        samples.len()
    ))
}

/// What the floor is made of.
fn floor(results: &Results, fixture: &str) -> String {
    let part = |pick: fn(&Floor) -> f64| results.floor(fixture, pick);
    let Some(streaming) = part(Floor::streaming) else {
        return String::new();
    };
    let all = |pick| targets::on_all_cores(results, fixture, pick).unwrap_or(0.0);
    let value = |pick| part(pick).unwrap_or(0.0);
    format!(
        "
The floor, CPU seconds: inflating {:.2} by zlib-rs as it comes or {:.2} by libdeflate as a whole; SHA-256 of blobs {:.2}, of
archives {:.2}, of the image {:.2}; writing the image once {:.2} ({:.2} s until it is on the disk). In all {streaming:.2} or {:.2},
on {} cores **{:.2} s or {:.2} s**.
",
        value(|floor| floor.inflate_streaming),
        value(|floor| floor.inflate_whole),
        value(|floor| floor.hash_blobs),
        value(|floor| floor.hash_tars),
        value(|floor| floor.hash_image),
        value(|floor| floor.write),
        value(|floor| floor.write_wall),
        value(Floor::whole),
        results.host.cores,
        all(Floor::streaming),
        all(Floor::whole),
    )
}

/// What builds say of their own parts.
fn parts(results: &Results, fixture: &str) -> String {
    let mut rows = String::new();
    for (flow, words) in flows() {
        let value = |name: &str| {
            results
                .more(fixture, flow, name)
                .map_or_else(|| "–".to_owned(), |milliseconds| format!("{milliseconds:.0}"))
        };
        if results.more(fixture, flow, "total_duration_ms").is_some() {
            // Writing to a string does not fail.
            let _ = writeln!(
                rows,
                "| {words} | {} | {} | {} | {} | {} |",
                value("pull_duration_ms"),
                value("extract_duration_ms"),
                value("build_duration_ms"),
                value("optimize_duration_ms"),
                value("total_duration_ms"),
            );
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let hash = results
        .floor(fixture, |floor| floor.hash_image_wall)
        .map_or_else(String::new, |hash| {
            format!(
                " The SHA-256 of the whole image alone takes {:.0} ms.",
                hash * 1000.0
            )
        });
    format!(
        "
What builds say of themselves, medians in milliseconds; pulling and indexing overlap.{hash}

| flow | pull | index | fold to copy, hash beside | rest of hash, publish | all |
|---|---|---|---|---|---|
{rows}"
    )
}

/// Which others were there, in which versions, and which were not.
fn peers(results: &Results) -> String {
    let mut text = String::from("\n## The others\n\n");
    for peer in Peer::ALL {
        let absent = results
            .absent
            .iter()
            .find(|(key, _)| key.ends_with(&format!("/{}", peer.name().replace('-', ""))));
        let said = match (peer.missing(), absent) {
            (Some(program), _) => format!("not measured here, {program} is not installed"),
            (None, Some((_, reason))) => reason.clone(),
            (None, None) => peer.version(),
        };
        let _ = writeln!(text, "- {}: {said}.", peer.words());
    }
    text + "\nThey are told a size for the image that they cannot know; theirs is what the tree takes, and a quarter more.\n\
            On large images they run at most 3 times, the flow with a mount once. The floor, the writers and the throttled\n\
            download run at most 3 times.\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;

    #[test]
    fn what_people_wrote_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let page = directory.path().join("page.md");
        let host = Host {
            cpu: "one".into(),
            cores: 2,
            has_sha: true,
            memory_gib: 1.0,
            kernel: "Linux".into(),
            file_system: "ext2/ext3".into(),
            load: 3.0,
            commit: "c".into(),
            date: "d".into(),
        };
        let mut results = Results::new(&directory.path().join("r"), host, "cargo xtask bench".into());
        results.add("nginx", "registry", Sample::default());
        write(&results, &page, &page).unwrap();
        let first = fs::read_to_string(&page).unwrap();
        assert!(first.contains("## Where the time goes"), "{first}");
        assert!(first.contains("the machine was busy"), "{first}");
        let mine = "## Where the time goes\n\nIn inflating.\n";
        fs::write(&page, first.replace("## Where the time goes\n", mine)).unwrap();
        write(&results, &page, &page).unwrap();
        let second = fs::read_to_string(&page).unwrap();
        assert!(second.ends_with(mine), "{second}");
        assert_eq!(second.matches(MARK).count(), 1);
    }
}
