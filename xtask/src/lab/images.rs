//! The real images: `tiny`, `debian`, `nginx` and `systemd`, and `big` for the bench, each an OCI layout below `lab/images`.

use std::{fs, path::Path, process::Command};

use super::once;
use crate::context::{Context, Result, at, run};

/// Debian's release that the images are made of.
const RELEASE: &str = "bookworm";

/// The images of the end-to-end tests.
pub(crate) fn images(context: &Context) -> Result<()> {
    for name in ["debian", "nginx", "systemd"] {
        image(context, name)?;
    }
    let recipe = context.root.join("xtask/images/tiny");
    once(
        &context.lab().join("images/tiny"),
        &recipe_text(&recipe)?,
        |directory| tiny(context, &recipe, directory),
    )
}

/// The image of the recipe `xtask/images/NAME` on Debian's base.
pub(crate) fn image(context: &Context, name: &str) -> Result<()> {
    let base = context.lab().join("base");
    once(&base, RELEASE, |directory| {
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.args([
            "--quiet",
            "--variant=minbase",
            "--include=ca-certificates",
            RELEASE,
        ]);
        run(mmdebstrap.arg(directory.join("base.tar")))
    })?;
    let recipe = context.root.join("xtask/images").join(name);
    let text = recipe_text(&recipe)?;
    once(&context.lab().join("images").join(name), &text, |directory| {
        let store = Store::new(context)?;
        let files = store.directory.join(name);
        run(Command::new("cp").arg("-r").arg(&recipe).arg(&files))?;
        let tar = files.join("base.tar");
        at(&tar, fs::hard_link(base.join("base.tar"), &tar))?;
        store.build(&files, name, &[])?;
        run(store
            .buildah("push")
            .arg(name)
            .arg(format!("oci:{}:1", directory.display())))
    })
}

/// Busybox for two architectures under one name. No program of the other architecture runs while it is made.
fn tiny(context: &Context, recipe: &Path, directory: &Path) -> Result<()> {
    let store = Store::new(context)?;
    run(store.buildah("manifest").args(["create", "tiny"]))?;
    for architecture in ["amd64", "arm64"] {
        let files = store.directory.join(architecture);
        run(Command::new("cp").arg("-r").arg(recipe).arg(&files))?;
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.args(["--quiet", "--variant=extract", "--include=busybox-static"]);
        mmdebstrap
            .arg(format!("--architectures={architecture}"))
            .arg(RELEASE)
            .arg(files.join("busybox.tar"));
        run(&mut mmdebstrap)?;
        run(Command::new("tar")
            .arg("-C")
            .arg(&files)
            .arg("-xf")
            .arg(files.join("busybox.tar"))
            .arg("./bin/busybox"))?;
        store.build(
            &files,
            &format!("tiny-{architecture}"),
            &["--platform", &format!("linux/{architecture}")],
        )?;
        run(store
            .buildah("manifest")
            .args(["add", "tiny", &format!("localhost/tiny-{architecture}")]))?;
    }
    let to = format!("oci:{}:1", directory.display());
    run(store.buildah("manifest").args(["push", "--all", "tiny"]).arg(to))
}

/// Everything that a recipe says, as the text that decides whether an image is made again.
fn recipe_text(recipe: &Path) -> Result<String> {
    let mut paths = Vec::new();
    let mut directories = vec![recipe.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in at(&directory, fs::read_dir(&directory))? {
            let path = at(&directory, entry)?.path();
            if path.is_dir() {
                directories.push(path)
            } else {
                paths.push(path)
            }
        }
    }
    paths.sort();
    let mut text = format!("{RELEASE}\n");
    for path in paths {
        text.push_str(&at(&path, fs::read_to_string(&path))?);
    }
    Ok(text)
}

/// A container store of our own, so that nothing of the host's is read or changed. It is removed at the end.
struct Store {
    directory: std::path::PathBuf,
}

impl Store {
    fn new(context: &Context) -> Result<Self> {
        let directory = context.lab().join("store");
        // One that a killed run left behind.
        let _ = fs::remove_dir_all(&directory);
        at(&directory, fs::create_dir_all(&directory))?;
        Ok(Self { directory })
    }

    fn buildah(&self, verb: &str) -> Command {
        let mut command = Command::new("buildah");
        command
            .arg("--root")
            .arg(self.directory.join("root"))
            .arg("--runroot")
            .arg(self.directory.join("run"));
        command.args(["--storage-driver", "overlay", verb]);
        command
    }

    fn build(&self, files: &Path, name: &str, options: &[&str]) -> Result<()> {
        let mut build = self.buildah("bud");
        build.args([
            "--quiet",
            "--isolation",
            "chroot",
            "--network",
            "host",
            "--layers",
            "--tag",
            name,
        ]);
        run(build.args(options).arg(files))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
