//! What is measured, how often, and in which order.
//!
//! The runs of one fixture go round: each stage once, then each a second time. So what disturbs the machine for a while
//! disturbs all of them, and ratios stay what they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::ensure;

use crate::{
    fixture::{self, Fixture},
    host::Host,
    interrupt, layout,
    ours::Bench,
    peers::Peer,
    place::Place,
    process,
    registry::Registry,
    report,
    results::Results,
    targets,
};

/// What `builderd-bench run` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these images
    #[arg(long, value_delimiter = ',')]
    fixture: Vec<Fixture>,

    /// Runs of each of our own flows; others run at most so often, and at most 3 times on large images
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=50))]
    runs: u8,

    /// Only these stages
    #[arg(long, value_delimiter = ',', value_name = "STAGE")]
    only: Vec<Stage>,

    /// One run of each, without the image big: for trying the bench itself
    #[arg(long)]
    quick: bool,

    /// Go on where an earlier run of the same commit stopped
    #[arg(long)]
    resume: bool,

    /// Write docs/benchmarks.md even when not everything was measured
    #[arg(long)]
    publish: bool,

    /// The program that is measured
    #[arg(long, hide = true)]
    builderd: PathBuf,

    /// Where everything is kept
    #[arg(long, hide = true)]
    directory: PathBuf,

    /// Where `cargo xtask lab` keeps images
    #[arg(long, hide = true)]
    images: PathBuf,

    /// The page
    #[arg(long, hide = true)]
    document: PathBuf,
}

/// One thing to measure, or a few that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Stage {
    /// What no build can do without
    Floor,
    /// Blobs on disk to an image, then a second image, then the first again
    Disk,
    /// The same on an XFS that can reflink
    Reflink,
    /// Blobs on disk to a read-only image, with and without dm-verity
    Ro,
    /// Registry to image
    Registry,
    /// The same and the download alone, at 8 MB/s a connection
    Slow,
    /// Downloading alone, beside skopeo copy
    Pull,
    /// The writer alone, beside mke2fs -d
    Writer,
    /// One large blob, beside curl
    Curl,
    /// One large blob at 50 MB/s a connection
    Throttle,
    /// docker with a mount, as the original did it
    DockerMount,
    /// docker with mkfs.ext4 -d
    Docker,
    /// skopeo and umoci
    Umoci,
    /// containerd
    Containerd,
    /// podman
    Podman,
    /// crane and tar2ext4
    Crane,
}

impl Stage {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    const fn peer(self) -> Option<Peer> {
        match self {
            Self::DockerMount => Some(Peer::DockerMount),
            Self::Docker => Some(Peer::Docker),
            Self::Umoci => Some(Peer::Umoci),
            Self::Containerd => Some(Peer::Containerd),
            Self::Podman => Some(Peer::Podman),
            Self::Crane => Some(Peer::Crane),
            _ => None,
        }
    }

    /// The stages of a fixture.
    const fn of(fixture: Fixture) -> &'static [Self] {
        match fixture {
            Fixture::Nginx | Fixture::Big => &[
                Self::Floor,
                Self::Disk,
                Self::Reflink,
                Self::Ro,
                Self::Registry,
                Self::Slow,
                Self::Pull,
                Self::Writer,
                Self::DockerMount,
                Self::Docker,
                Self::Umoci,
                Self::Containerd,
                Self::Podman,
                Self::Crane,
            ],
            Fixture::Many | Fixture::Flat => &[Self::Disk, Self::Writer],
            Fixture::Large => &[Self::Writer],
            Fixture::Blob => &[Self::Curl, Self::Throttle],
        }
    }

    /// How often it runs when our own flows run `runs` times, so that all of it takes less than half an hour.
    fn rounds(self, fixture: Fixture, runs: usize) -> usize {
        match (self, fixture) {
            (Self::DockerMount, Fixture::Big) => runs.min(1),
            (Self::Floor | Self::Writer | Self::Throttle, _) => runs.min(3),
            (_, Fixture::Big) if self.peer().is_some() => runs.min(3),
            _ => runs,
        }
    }
}

/// `builderd-bench run`.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    interrupt::listen()?;
    // Daemons' children come to this process when their parents end, so that they are counted and can be ended.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let place = Place::open(&options.directory)?;
    let host = Host::look(place.root());
    if let Some(warning) = host.warning() {
        println!("warning: {warning}");
    }
    let path = place.root().join("results.json");
    let command = format!("cargo xtask bench {}", command_line());
    let kept = options.resume.then(|| Results::resume(&path, &host)).flatten();
    if options.resume && kept.is_none() {
        println!("nothing of this commit was measured before: beginning anew");
    }
    if kept.is_none() {
        Results::put_aside(&path)?;
    }
    let mut results = kept.unwrap_or_else(|| Results::new(&path, host, command));
    let failures = measure_all(options, &place, &mut results)?;
    process::end_stragglers(&std::collections::BTreeSet::new());

    let is_whole = !options.quick && options.only.is_empty() && options.fixture.is_empty();
    let document = if is_whole || options.publish {
        options.document.clone()
    } else {
        place.root().join("benchmarks.md")
    };
    report::write(&results, &options.document, &document)?;
    println!(
        "\n{}\nwritten to {}",
        targets::table(&results),
        document.display()
    );
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    Ok(ExitCode::FAILURE)
}

fn command_line() -> String {
    // Where things are is the caller's; what was asked for is what counts.
    let hidden = ["--builderd", "--directory", "--images", "--document"];
    let mut words = Vec::new();
    let mut arguments = std::env::args().skip(2);
    while let Some(argument) = arguments.next() {
        if hidden.contains(&argument.as_str()) {
            arguments.next();
        } else {
            words.push(argument);
        }
    }
    words.join(" ")
}

/// Measures what was asked for and is not measured yet. Gives what failed; an error only when nothing can go on.
fn measure_all(options: &Options, place: &Place, results: &mut Results) -> anyhow::Result<Vec<String>> {
    ensure!(
        options.builderd.is_file(),
        "{} is not there",
        options.builderd.display()
    );
    let registry = Registry::start(&place.root().join("registry"))?;
    let bench = Bench {
        place,
        registry: &registry,
        builderd: &options.builderd,
    };
    let mut failures = Vec::new();
    let is_wanted = |fixture: &Fixture| {
        if options.fixture.is_empty() {
            !(options.quick && *fixture == Fixture::Big)
        } else {
            options.fixture.contains(fixture)
        }
    };
    for fixture in Fixture::ALL.into_iter().filter(is_wanted) {
        let layout = fixture::prepare(fixture, place.root(), &options.images)?;
        interrupt::check()?;
        fixture::warm(&layout)?;
        registry.push(fixture, &layout)?;
        let compressed = layout::Image::open(&layout, "1")?.compressed_bytes();
        results.sizes.insert(fixture.name().to_owned(), compressed);
        let outcome = measure(&bench, fixture, &layout, options, results, &mut failures);
        // Whatever was measured is kept, whatever comes.
        results.save()?;
        outcome?;
    }
    Ok(failures)
}

fn measure(
    bench: &Bench<'_>,
    fixture: Fixture,
    layout: &Path,
    options: &Options,
    results: &mut Results,
    failures: &mut Vec<String>,
) -> anyhow::Result<()> {
    let runs = if options.quick {
        1
    } else {
        usize::from(options.runs)
    };
    for round in 0..runs {
        for stage in Stage::of(fixture) {
            let key = format!("{fixture}/{}", stage.name());
            let is_asked_for = options.only.is_empty() || options.only.contains(stage);
            let is_done = results.rounds.get(&key).is_some_and(|done| *done > round);
            if !is_asked_for
                || is_done
                || round >= stage.rounds(fixture, runs)
                || results.absent.contains_key(&key)
            {
                continue;
            }
            if let Some(program) = stage.peer().and_then(Peer::missing) {
                println!("{key}: {program} is not installed");
                results
                    .absent
                    .insert(key, format!("{program} is not installed here"));
                continue;
            }
            interrupt::check()?;
            let start = Instant::now();
            let outcome = run_stage(bench, *stage, fixture, layout, results);
            bench.place.clear_work();
            process::end_stragglers(&bench.registry.pids());
            interrupt::check()?;
            match outcome {
                Ok(()) => {
                    *results.rounds.entry(key.clone()).or_default() += 1;
                    println!(
                        "{key} {}: {:.1} s in all",
                        round + 1,
                        start.elapsed().as_secs_f64()
                    );
                }
                Err(error) => {
                    println!("{key} {}: failed: {error:#}", round + 1);
                    results.absent.insert(key.clone(), format!("failed: {error:#}"));
                    failures.push(format!("{key}: {error:#}"));
                }
            }
            results.save()?;
        }
    }
    Ok(())
}

fn run_stage(
    bench: &Bench<'_>,
    stage: Stage,
    fixture: Fixture,
    layout: &Path,
    results: &mut Results,
) -> anyhow::Result<()> {
    let source = format!("oci:{}:1", layout.display());
    match stage {
        Stage::Floor => bench.floor(fixture, layout, results),
        Stage::Disk => {
            let directory = bench.place.fresh("disk")?;
            bench.disk(fixture, layout, &directory, "", results)
        }
        Stage::Reflink => {
            let directory = bench.place.reflink()?.join("disk");
            let done = bench.disk(fixture, layout, &directory, "reflink-", results);
            fs::remove_dir_all(&directory)?;
            done
        }
        Stage::Ro => {
            bench.once(fixture, &source, "ro", &["--profile", "ro"], results)?;
            if bench.has_option("--no-verity")? {
                bench.once(
                    fixture,
                    &source,
                    "ro-plain",
                    &["--profile", "ro", "--no-verity"],
                    results,
                )?;
            }
            Ok(())
        }
        Stage::Registry => {
            let reference = bench.registry.reference(fixture, "1");
            bench.once(fixture, &reference, "registry", &["--plain-http"], results)?;
            Ok(())
        }
        Stage::Slow => bench.slow(fixture, layout, results),
        Stage::Pull => bench.pulls(fixture, results),
        Stage::Writer => bench.writers(fixture, layout, results),
        Stage::Curl => bench.blob(fixture, layout, results),
        Stage::Throttle => bench.throttled(fixture, layout, results),
        Stage::DockerMount
        | Stage::Docker
        | Stage::Umoci
        | Stage::Containerd
        | Stage::Podman
        | Stage::Crane => {
            let mut peer = stage.peer().into_iter();
            peer.try_for_each(|peer| bench.peer(fixture, peer, results))
        }
    }
}
