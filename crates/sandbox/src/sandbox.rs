//! The host's means of isolation, tried out once, and boxes made with them.

use std::{
    fmt, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    cgroup::{Group, GroupError, GroupLimits, Groups},
    child::Child,
    error::{Failure, LaunchError, LaunchErrorKind},
    isolation::{Isolation, Layer, Layers},
    launch::{BoxRequest, start_boxed},
    lease::{FIRST_ID, Leases},
    program::SealedProgram,
    seccomp::Calls,
    spec::Spec,
    sys,
};

/// How long the self-test of a layer may take. It is a matter of milliseconds.
const SELF_TEST_TIME: Duration = Duration::from_secs(20);

/// What a [`Sandbox`] is started with.
#[derive(Clone, Debug)]
pub struct Settings<'a> {
    /// Prefix of the names of control groups; processes with the same one clear up behind each other.
    pub name: &'a str,
    /// The program `sandbox-helper` of this crate, linked statically.
    pub helper: &'a [u8],
    /// Where the locks of user id ranges are; made if it is not there. `None` when no box needs a user of its own.
    pub lease_directory: Option<PathBuf>,
}

/// Launches programs in boxes. Cheap to clone. The control groups are removed with the last clone, and with the last
/// child.
#[derive(Clone, Debug)]
pub struct Sandbox {
    inner: Arc<Inner>,
}

/// A layer that this host does not offer.
#[derive(Clone, Debug)]
pub struct Missing {
    /// Which one.
    pub layer: Layer,
    /// Why not: what failed, and with what.
    pub reason: String,
}

#[derive(Debug)]
struct Inner {
    helper: SealedProgram,
    groups: Option<Groups>,
    available: Layers,
    missing: Vec<Missing>,
    leases: Result<Leases, String>,
    privileged: bool,
    boxes: AtomicU64,
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.layer, self.reason)
    }
}

impl Sandbox {
    /// Tries out every layer, each by launching a program in it. What does not work is [missing](Self::missing), and a
    /// box that asks for it will be refused.
    ///
    /// # Errors
    /// When the helper cannot be put into memory.
    pub fn start(settings: &Settings<'_>) -> io::Result<Self> {
        let helper = SealedProgram::new("sandbox-helper", settings.helper)?;
        let privileged = rustix::process::geteuid().is_root();
        let leases = match &settings.lease_directory {
            _ if !privileged => Err("only root can use other user ids".to_owned()),
            None => Err("no directory for their locks is set".to_owned()),
            Some(directory) => {
                Leases::new(directory).map_err(|error| format!("{}: {error}", directory.display()))
            }
        };
        let mut inner = Inner {
            helper,
            groups: None,
            available: Layers::NONE,
            missing: Vec::new(),
            leases,
            privileged,
            boxes: AtomicU64::new(0),
        };
        for layer in [
            Layer::ControlGroups,
            Layer::Namespaces,
            Layer::Seccomp,
            Layer::Landlock,
        ] {
            match inner.try_out(layer, settings.name) {
                Ok(()) => inner.available = inner.available.with(layer),
                Err(reason) => inner.missing.push(Missing { layer, reason }),
            }
        }
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The layers that work here.
    #[must_use]
    pub fn available(&self) -> Layers {
        self.inner.available
    }

    /// The layers that do not, with the reason.
    #[must_use]
    pub fn missing(&self) -> &[Missing] {
        &self.inner.missing
    }

    /// Whether a box can have a user id of its own, and if not, why.
    ///
    /// # Errors
    /// The reason.
    pub fn own_users(&self) -> Result<(), &str> {
        self.inner.leases.as_ref().map(|_| ()).map_err(String::as_str)
    }

    /// The control groups, where they can be had.
    #[must_use]
    pub fn groups(&self) -> Option<&Groups> {
        self.inner.groups.as_ref()
    }

    /// Tries out a box with `isolation` once more, which takes as long as any box: what worked at the start may have been
    /// taken away since.
    ///
    /// # Errors
    /// The reason in words, which may name paths of the host.
    pub fn check(&self, isolation: Isolation) -> Result<(), String> {
        self.inner.self_test(isolation)
    }

    /// Starts a program in a box, and returns when it has begun. The box has a control group of its own, with `limits`,
    /// below `parent` or else below the sandbox's own. See [`launch`](crate::launch()) for what holds in any case.
    ///
    /// # Errors
    /// As [`launch`](crate::launch()); and [`LaunchErrorKind::Missing`] when the host does not offer a layer of
    /// `isolation`. Nothing is left then, but for a [survivor](LaunchError::take_survivor).
    pub fn launch(
        &self,
        spec: Spec,
        isolation: Isolation,
        parent: Option<&Arc<Group>>,
        limits: &GroupLimits,
    ) -> Result<Child, LaunchError> {
        let program = spec.program.describe();
        self.inner
            .launch(spec, isolation, parent, limits)
            .map_err(|failure| LaunchError::new(&program, failure))
    }
}

impl Inner {
    fn launch(
        &self,
        spec: Spec,
        isolation: Isolation,
        parent: Option<&Arc<Group>>,
        limits: &GroupLimits,
    ) -> Result<Child, Failure> {
        if let Some(layer) = isolation.layers.missing_from(self.available).next() {
            let missing = self.missing.iter().find(|missing| missing.layer == layer);
            let reason =
                missing.map_or_else(|| "it was not tried".to_owned(), |missing| missing.reason.clone());
            return Err(LaunchErrorKind::Missing { layer, reason }.into());
        }
        self.start(spec, isolation, parent, limits)
    }

    fn start(
        &self,
        spec: Spec,
        isolation: Isolation,
        parent: Option<&Arc<Group>>,
        limits: &GroupLimits,
    ) -> Result<Child, Failure> {
        let group = match &self.groups {
            Some(groups) if isolation.layers.has(Layer::ControlGroups) => {
                let name = format!("box-{}", self.boxes.fetch_add(1, Ordering::Relaxed));
                let group = match parent {
                    Some(parent) => parent.child(&name, limits),
                    None => groups.group(&name, limits),
                };
                Some(Arc::new(group.map_err(LaunchErrorKind::Group)?))
            }
            _ => None,
        };
        let lease = match &self.leases {
            _ if !isolation.own_user || !isolation.layers.has(Layer::Namespaces) => None,
            Ok(leases) => Some(
                leases
                    .take()
                    .map_err(LaunchErrorKind::parent("lock of a user id range"))?,
            ),
            Err(reason) => {
                return Err(LaunchErrorKind::Missing {
                    layer: Layer::Namespaces,
                    reason: format!("a user of its own: {reason}"),
                }
                .into());
            }
        };
        let outer_ids = match &lease {
            Some(lease) => (lease.id(), lease.id()),
            None if self.privileged => (FIRST_ID, FIRST_ID),
            None => (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
        };
        start_boxed(
            spec,
            BoxRequest {
                helper: &self.helper,
                isolation,
                group,
                outer_ids,
                privileged: self.privileged,
                lease,
            },
        )
    }

    /// Launches the helper as the program of a box with this layer, and with the control groups that were found.
    fn try_out(&mut self, layer: Layer, name: &str) -> Result<(), String> {
        if layer == Layer::ControlGroups {
            let groups = Groups::start(name).map_err(|error: GroupError| chain(&error))?;
            self.groups = Some(groups);
        }
        if layer == Layer::Landlock {
            sys::boxed::landlock_version().map_err(|errno| {
                format!(
                    "the kernel does not have it: {}",
                    io::Error::from_raw_os_error(errno)
                )
            })?;
        }
        let result = self.self_test(Isolation {
            layers: Layers::NONE.with(layer),
            calls: Calls::Worker,
            own_user: false,
        });
        if layer == Layer::ControlGroups && result.is_err() {
            self.groups = None;
        }
        result
    }

    /// Launches the helper as the program of a box.
    fn self_test(&self, isolation: Isolation) -> Result<(), String> {
        let mut spec = Spec::new(self.helper.clone());
        spec.arguments = vec!["self-test".into()];
        spec.limits.wall_time = Some(SELF_TEST_TIME);
        let limits = GroupLimits {
            memory_bytes: Some(64 << 20),
            cpu_millicores: None,
            processes: Some(16),
        };
        let tried = self
            .start(spec, isolation, None, &limits)
            .map_err(|failure| chain(&failure.kind))
            .and_then(|child| child.wait().map_err(|error| chain(&error)));
        match tried {
            Ok(outcome) if outcome.status.success() => Ok(()),
            Ok(outcome) => Err(format!("a program in it ended with {}", outcome.status)),
            Err(reason) => Err(reason),
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
