//! The builds of our own that are measured.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{
    chunks,
    fixture::Fixture,
    floor::Floor,
    interrupt,
    place::{Place, empty},
    process,
    registry::Registry,
    results::{Results, Sample},
    writer::Written,
};

/// No build takes longer.
const LIMIT: Duration = Duration::from_secs(900);

/// What the measurements share.
pub(crate) struct Bench<'a> {
    pub(crate) place: &'a Place,
    pub(crate) registry: &'a Registry,
    pub(crate) builderd: &'a Path,
}

impl Bench<'_> {
    /// Measures one program, everything written out before.
    pub(crate) fn measure(&self, command: &mut Command) -> anyhow::Result<(String, Sample)> {
        self.place.settle()?;
        let done = process::measure(command, LIMIT, &self.registry.pids())?;
        let sample = Sample {
            wall: done.wall,
            cpu: done.cpu,
            peak_bytes: Some(done.peak_bytes),
            ..Sample::default()
        };
        Ok((done.stdout, sample))
    }

    /// Whether `builderd build` knows an option.
    pub(crate) fn has_option(&self, option: &str) -> anyhow::Result<bool> {
        let help = process::output(Command::new(self.builderd).args(["build", "--help"]), LIMIT)?;
        Ok(help.contains(option))
    }

    fn build(&self, source: &str, cache: &Path, output: &Path, options: &[&str]) -> anyhow::Result<Sample> {
        let mut command = Command::new(self.builderd);
        command
            .args(["build", source, "--json", "--cache-dir"])
            .arg(cache)
            .arg("-o")
            .arg(output)
            .args(options);
        let (stdout, mut sample) = self.measure(&mut command)?;
        let last: Value = stdout
            .lines()
            .last()
            .and_then(|line| serde_json::from_str(line).ok())
            .context("builderd printed no JSON")?;
        ensure!(last["event"] == "completed", "builderd ended with {last}");
        sample
            .more
            .insert("size_bytes".into(), last["size_bytes"].as_f64().unwrap_or(0.0));
        for (name, value) in last["metrics"].as_object().into_iter().flatten() {
            if let Some(value) = value.as_f64() {
                sample.more.insert(name.clone(), value);
            }
        }
        Ok(sample)
    }

    /// Blobs on disk to an image with nothing cached, then image 2, then image 1 again, all in `directory`. The names of the
    /// samples begin with `prefix`.
    pub(crate) fn disk(
        &self,
        fixture: Fixture,
        layout: &Path,
        directory: &Path,
        prefix: &str,
        results: &mut Results,
    ) -> anyhow::Result<()> {
        let cache = empty(&directory.join("cache"))?;
        let outputs = empty(&directory.join("images"))?;
        let image = |name: &str| outputs.join(format!("{name}.ext4"));
        let mut samples = Vec::new();
        for (name, tag) in [("first", "1"), ("second", "2"), ("again", "1")] {
            let source = format!("oci:{}:{tag}", layout.display());
            let mut sample = self.build(&source, &cache, &image(name), &[])?;
            if name == "second" {
                // Once is enough: images are the same each time.
                let known = results.more(fixture.name(), &format!("{prefix}second"), "shared_percent");
                let percent = match known {
                    Some(percent) => percent,
                    None => chunks::shared_percent(&image("first"), &image("second"))?,
                };
                sample.more.insert("shared_percent".into(), percent);
            }
            samples.push((format!("{prefix}{name}"), sample));
        }
        ensure!(
            same_bytes(&image("first"), &image("again"))?,
            "the same image built twice differs"
        );
        for (name, sample) in samples {
            results.add(fixture.name(), &name, sample);
        }
        Ok(())
    }

    /// A build with nothing cached, with options.
    pub(crate) fn once(
        &self,
        fixture: Fixture,
        source: &str,
        name: &str,
        options: &[&str],
        results: &mut Results,
    ) -> anyhow::Result<PathBuf> {
        let directory = self.place.fresh("ours")?;
        let output = directory.join("image.ext4");
        let sample = self.build(source, &directory.join("cache"), &output, options)?;
        results.add(fixture.name(), name, sample);
        Ok(output)
    }

    /// The floor of a fixture, for the image that a build makes of it.
    pub(crate) fn floor(&self, fixture: Fixture, layout: &Path, results: &mut Results) -> anyhow::Result<()> {
        let directory = self.place.fresh("floor")?;
        let image = directory.join("image.ext4");
        let source = format!("oci:{}:1", layout.display());
        self.build(&source, &directory.join("cache"), &image, &[])?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("floor")
            .arg(layout)
            .arg(&image)
            .arg(directory.join("copy.ext4"));
        let (stdout, _) = self.measure(&mut command)?;
        let floor: Floor = serde_json::from_str(&stdout)?;
        results
            .floors
            .entry(fixture.name().to_owned())
            .or_default()
            .push(floor);
        Ok(())
    }

    /// The writer alone beside `mke2fs -d` on the same tree, until both images are on the disk: mke2fs waits for that itself.
    pub(crate) fn writers(
        &self,
        fixture: Fixture,
        layout: &Path,
        results: &mut Results,
    ) -> anyhow::Result<()> {
        let kept = self.place.root().join("writer").join(fixture.name());
        let (packs, tree) = (kept.join("packs"), kept.join("bundle"));
        let directory = self.place.fresh("writer")?;
        let output = directory.join("ours.ext4");
        let mut write = Command::new(std::env::current_exe()?);
        write.arg("write").arg(layout).arg(&packs).arg(&output);
        if !packs.join("done").exists() {
            // Once without measuring: it makes the packs.
            drop(empty(&packs)?);
            self.measure(&mut write)?;
            fs::write(packs.join("done"), "")?;
        }
        let (stdout, mut sample) = self.measure(&mut write)?;
        let written: Written = serde_json::from_str(&stdout)?;
        (sample.wall, sample.cpu) = (written.wall, written.cpu);
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        sample.more.insert("size_bytes".into(), written.size_bytes as f64);
        sample.wall += sync(&output)?;
        results.add(fixture.name(), "writer", sample);
        fs::remove_file(&output)?;

        if !kept.join("unpacked").exists() {
            if tree.exists() {
                fs::remove_dir_all(&tree)?;
            }
            let mut umoci = Command::new("umoci");
            umoci
                .args(["unpack", "--image"])
                .arg(format!("{}:1", layout.display()))
                .arg(&tree);
            self.measure(&mut umoci)?;
            fs::write(kept.join("unpacked"), "")?;
        }
        interrupt::check()?;
        // As large as ours, so that both write as much.
        let output = directory.join("mke2fs.ext4");
        let mut mke2fs = Command::new("mkfs.ext4");
        mke2fs
            .args(["-q", "-F", "-b", "4096", "-N"])
            .arg(inodes(fixture))
            .arg("-d")
            .arg(tree.join("rootfs"))
            .arg(&output)
            .arg(format!("{}K", written.size_bytes.div_ceil(1024) + (128 << 10)));
        let (_, mut sample) = self.measure(&mut mke2fs)?;
        sample.wall += sync(&output)?;
        results.add(fixture.name(), "mke2fs", sample);
        Ok(())
    }
}

/// Inodes enough for the fixture.
const fn inodes(fixture: Fixture) -> &'static str {
    match fixture {
        Fixture::Large | Fixture::Blob => "20000",
        Fixture::Nginx => "40000",
        Fixture::Big | Fixture::Many | Fixture::Flat => "150000",
    }
}

fn sync(path: &Path) -> anyhow::Result<f64> {
    let start = std::time::Instant::now();
    fs::File::open(path)?.sync_all()?;
    Ok(start.elapsed().as_secs_f64())
}

fn same_bytes(first: &Path, second: &Path) -> anyhow::Result<bool> {
    let mut cmp = Command::new("cmp");
    cmp.arg("-s").arg(first).arg(second);
    Ok(cmp.status()?.success())
}
