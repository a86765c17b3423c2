//! Other tools on the same way: from the registry to an ext4 image that is on the disk. Each flow is a shell script, as its
//! users write it. The tools start with empty stores each time; starting a daemon is not measured.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};

use crate::{fixture::Fixture, interrupt, ours::Bench, process, results::Results};

/// From a tree to an image, with a quarter of free space. The tools have to be told a size; this is how theirs is found.
const MKFS: &str = "
kib=$(du -sk \"$TREE\" | cut -f1)
mkfs.ext4 -q -F -d \"$TREE\" \"$OUT\" $((kib + kib / 4 + 65536))K
sync \"$OUT\"
";

/// A flow of other tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    DockerMount,
    Docker,
    Umoci,
    Containerd,
    Podman,
    Crane,
}

impl Peer {
    pub(crate) const ALL: [Self; 6] = [
        Self::DockerMount,
        Self::Docker,
        Self::Umoci,
        Self::Containerd,
        Self::Podman,
        Self::Crane,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::DockerMount => "docker-mount",
            Self::Docker => "docker",
            Self::Umoci => "umoci",
            Self::Containerd => "containerd",
            Self::Podman => "podman",
            Self::Crane => "crane",
        }
    }

    /// For the page.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::DockerMount => "docker pull, create, export, tar -x, mkfs, loop mount, cp -a",
            Self::Docker => "docker pull, create, export, tar -x, `mkfs.ext4 -d`",
            Self::Umoci => "skopeo copy, umoci unpack, `mkfs.ext4 -d`",
            Self::Containerd => "containerd: ctr pull, mount, `mkfs.ext4 -d`",
            Self::Podman => "podman pull, mount, `mkfs.ext4 -d`",
            Self::Crane => "crane export piped to tar2ext4",
        }
    }

    const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::DockerMount | Self::Docker => &["dockerd", "docker"],
            Self::Umoci => &["skopeo", "umoci"],
            Self::Containerd => &["containerd", "ctr"],
            Self::Podman => &["podman"],
            Self::Crane => &["crane", "tar2ext4"],
        }
    }

    /// The program that is not there, if one is not.
    pub(crate) fn missing(self) -> Option<&'static str> {
        self.programs()
            .iter()
            .copied()
            .find(|program| find(program).is_none())
    }

    /// The versions of its programs, as they say them.
    pub(crate) fn version(self) -> String {
        let versions: Vec<String> = self
            .programs()
            .iter()
            .filter_map(|program| {
                let said =
                    process::output(Command::new(program).arg("--version"), Duration::from_secs(30)).ok()?;
                Some(said.lines().next()?.trim().to_owned())
            })
            .collect();
        versions.join("; ")
    }

    fn script(self) -> String {
        let (before, after) = match self {
            Self::DockerMount | Self::Docker => {
                let unpacked = "
docker pull -q \"$REF\"
docker create --name flat \"$REF\" /bin/true
docker export -o \"$WORK/flat.tar\" flat
TREE=$WORK/tree
mkdir \"$TREE\"
tar -xf \"$WORK/flat.tar\" -C \"$TREE\"
";
                if self == Self::DockerMount {
                    let mounted = "
kib=$(du -sk \"$TREE\" | cut -f1)
truncate -s $((kib + kib / 4 + 65536))K \"$OUT\"
mkfs.ext4 -q -F \"$OUT\"
mkdir \"$WORK/mounted\"
mount -o loop \"$OUT\" \"$WORK/mounted\"
cp -a \"$TREE/.\" \"$WORK/mounted/\"
umount \"$WORK/mounted\"
sync \"$OUT\"
";
                    return format!("{unpacked}{mounted}");
                }
                (unpacked, "")
            }
            Self::Umoci => (
                "
skopeo --insecure-policy copy -q --src-tls-verify=false \"docker://$REF\" \"oci:$WORK/layout:1\"
umoci unpack --image \"$WORK/layout:1\" \"$WORK/bundle\"
TREE=$WORK/bundle/rootfs
",
                "",
            ),
            Self::Containerd => (
                "
ctr -a \"$SOCKET\" images pull --plain-http --snapshotter overlayfs \"$REF\" > \"$WORK/pulled\"
TREE=$WORK/tree
mkdir \"$TREE\"
ctr -a \"$SOCKET\" images mount --snapshotter overlayfs \"$REF\" \"$TREE\"
",
                "umount \"$TREE\"\n",
            ),
            Self::Podman => (
                "
podman() { command podman --root \"$WORK/root\" --runroot \"$WORK/run\" --storage-driver overlay \
--cgroup-manager cgroupfs --events-backend none \"$@\"; }
podman pull -q --tls-verify=false \"$REF\"
TREE=$(podman image mount \"$REF\")
",
                "podman image umount \"$REF\"\n",
            ),
            Self::Crane => {
                return "
crane export --insecure \"$REF\" - | tar2ext4 -o \"$OUT\"
sync \"$OUT\"
"
                .to_owned();
            }
        };
        format!("{before}{MKFS}{after}")
    }

    /// Its daemon, if it has one, with everything of it in `directory`.
    fn daemon(self, directory: &Path, socket: &Path) -> anyhow::Result<Option<Command>> {
        match self {
            Self::DockerMount | Self::Docker => {
                let mut command = Command::new("dockerd");
                command
                    .arg("--data-root")
                    .arg(directory.join("data"))
                    .arg("--exec-root")
                    .arg(directory.join("exec"))
                    .arg("--pidfile")
                    .arg(directory.join("pid"))
                    .arg(format!("--host=unix://{}", socket.display()))
                    .args(["--iptables=false", "--bridge=none", "--storage-driver=overlay2"]);
                Ok(Some(command))
            }
            Self::Containerd => {
                let config = directory.join("config.toml");
                // The interface for Kubernetes looks for networks and is not used here.
                let text = format!(
                    "version = 2\nroot = '{0}/root'\nstate = '{0}/state'\n\
                     disabled_plugins = ['io.containerd.grpc.v1.cri']\n\
                     [grpc]\naddress = '{1}'\n[ttrpc]\naddress = '{1}.ttrpc'\n",
                    directory.display(),
                    socket.display()
                );
                fs::write(&config, text)?;
                let mut command = Command::new("containerd");
                command.arg("--config").arg(config);
                Ok(Some(command))
            }
            Self::Umoci | Self::Podman | Self::Crane => Ok(None),
        }
    }
}

impl Bench<'_> {
    /// One run of a peer's flow.
    pub(crate) fn peer(&self, fixture: Fixture, peer: Peer, results: &mut Results) -> anyhow::Result<()> {
        let directory = self.place.fresh("peer")?;
        let socket = self.place.sockets().join("daemon");
        let _daemon = match peer.daemon(&directory, &socket)? {
            Some(mut command) => Some(start(&mut command, &directory, &socket)?),
            None => None,
        };
        let work = directory.join("work");
        // No credentials of the one who runs this.
        let docker_config = work.join("docker-config");
        fs::create_dir_all(&docker_config)?;
        fs::write(docker_config.join("config.json"), "{}")?;
        let output = directory.join("image.ext4");
        let mut shell = Command::new("sh");
        shell
            .args(["-euc", &peer.script()])
            .env("REF", self.registry.reference(fixture, "1"))
            .env("OUT", &output)
            .env("WORK", &work)
            .env("SOCKET", &socket)
            .env("DOCKER_HOST", format!("unix://{}", socket.display()))
            .env("DOCKER_CONFIG", &docker_config)
            .env("XDG_RUNTIME_DIR", self.place.sockets());
        let (_, mut sample) = self.measure(&mut shell)?;
        let metadata = fs::metadata(&output)?;
        ensure!(metadata.len() > 0, "the image of {} is empty", peer.name());
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        sample.more.insert("size_bytes".into(), metadata.len() as f64);
        results.add(fixture.name(), peer.name(), sample);
        Ok(())
    }
}

/// Starts a daemon and waits until it listens.
fn start(command: &mut Command, directory: &Path, socket: &Path) -> anyhow::Result<process::Group> {
    let log = directory.join("log");
    let file = fs::File::create(&log)?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let mut daemon = process::Group::start(command)?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while UnixStream::connect(socket).is_err() {
        interrupt::check()?;
        if daemon.has_ended() || Instant::now() > deadline {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            bail!(
                "{} does not listen: {}",
                command.get_program().display(),
                lines[lines.len().saturating_sub(3)..].join(" / ")
            );
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(daemon)
}

/// Finds a program in `PATH`.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}
