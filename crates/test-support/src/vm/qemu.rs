//! QEMU as a child process.

use std::{
    fmt, io,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{BootLog, BootOptions, GUEST_ADDRESS, VmRig, Vmm};

/// A machine that runs. Dropping it kills it.
pub struct RunningVm {
    child: Child,
    console: Arc<Console>,
    reader: Option<JoinHandle<()>>,
    monitor: PathBuf,
    started: Instant,
    deadline: Instant,
    _directory: TempDir,
}

impl fmt::Debug for RunningVm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RunningVm")
            .field("process", &self.child.id())
            .finish_non_exhaustive()
    }
}

/// What the serial console has shown so far.
#[derive(Default)]
struct Console {
    shown: Mutex<Shown>,
    changed: Condvar,
}

#[derive(Default)]
struct Shown {
    bytes: Vec<u8>,
    ended: bool,
}

impl Console {
    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self) -> String {
        text(&self.lock().bytes)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\r', "")
}

impl RunningVm {
    pub(super) fn start(
        rig: &VmRig,
        image: &Path,
        initrd: &Path,
        options: &BootOptions,
        directory: TempDir,
    ) -> io::Result<Self> {
        let monitor = directory.path().join("monitor");
        let mut child = command(rig, image, initrd, options, &monitor)?.spawn()?;
        let console = Arc::new(Console::default());
        let reader = child.stdout.take().map(|mut output| {
            let console = Arc::clone(&console);
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = output.read(&mut buffer) {
                    console.lock().bytes.extend(&buffer[..length]);
                    console.changed.notify_all();
                }
                console.lock().ended = true;
                console.changed.notify_all();
            })
        });
        let started = Instant::now();
        let deadline = started + options.limit;
        Ok(Self {
            child,
            console,
            reader,
            monitor,
            started,
            deadline,
            _directory: directory,
        })
    }

    /// What the serial console has shown so far, without carriage returns.
    #[must_use]
    pub fn serial(&self) -> String {
        self.console.text()
    }

    /// Blocks until the serial console has shown `text`; `false` when the machine ended or its time was up before.
    #[must_use]
    pub fn wait_for(&self, text: &str) -> bool {
        self.wait_for_within(text, self.deadline.saturating_duration_since(Instant::now()))
    }

    /// As [`wait_for`](Self::wait_for), for a shorter time than the machine has.
    #[must_use]
    pub fn wait_for_within(&self, text: &str, limit: Duration) -> bool {
        let found = |shown: &Shown| self::text(&shown.bytes).contains(text);
        let waited = self
            .console
            .changed
            .wait_timeout_while(self.console.lock(), limit, |shown| !found(shown) && !shown.ended);
        found(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Presses Ctrl-Alt-Delete, as Firecracker's `SendCtrlAltDel` does.
    ///
    /// # Errors
    /// When the machine has ended, or has no keyboard.
    pub fn send_ctrl_alt_delete(&self) -> io::Result<()> {
        self.ask_monitor("sendkey ctrl-alt-delete").map(drop)
    }

    /// The port of this host's loopback that leads into the guest.
    ///
    /// # Errors
    /// When the machine has ended, or has no network.
    pub fn forwarded_port(&self) -> io::Result<u16> {
        // QEMU was told to take any port that is free, and tells here which that was:
        // `TCP[HOST_FORWARD]  12  127.0.0.1 35631  10.0.2.15  8080  0  0`.
        let answer = self.ask_monitor("info usernet")?;
        let line = answer.lines().find(|line| line.contains("[HOST_FORWARD]"));
        line.and_then(|line| line.split_whitespace().nth(3)?.parse().ok())
            .ok_or_else(|| io::Error::other(format!("no port is forwarded: {answer}")))
    }

    /// Has QEMU carry out a command; what it shows in answer.
    fn ask_monitor(&self, command: &str) -> io::Result<String> {
        let mut monitor = UnixStream::connect(&self.monitor)?;
        monitor.write_all(format!("{command}\n").as_bytes())?;
        // The next prompt shows that the command was carried out; a closed connection could lose it.
        monitor.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut answer: Vec<u8> = Vec::new();
        let mut buffer = [0; 512];
        while answer.windows(6).filter(|window| window == b"(qemu)").count() < 2 {
            match monitor.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => answer.extend(&buffer[..length]),
            }
        }
        Ok(text(&answer))
    }

    /// Waits for the end of the machine and kills it when its time is up.
    ///
    /// # Errors
    /// When the machine cannot be waited for.
    pub fn wait(mut self) -> io::Result<BootLog> {
        let limit = self.deadline.saturating_duration_since(Instant::now());
        // The console ends when the machine does, so there is no need to ask the process again and again.
        let waited = self
            .console
            .changed
            .wait_timeout_while(self.console.lock(), limit, |shown| !shown.ended);
        let ended = waited.unwrap_or_else(PoisonError::into_inner).0.ended;
        if !ended {
            self.child.kill()?;
        }
        let status = self.child.wait()?;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let mut serial = self.console.text();
        if let Some(mut errors) = self.child.stderr.take() {
            // What QEMU itself has to say comes last.
            let mut message = String::new();
            errors.read_to_string(&mut message)?;
            serial.push_str(&message);
        }
        let ended_by_itself = ended && status.success() && !serial.contains("Kernel panic");
        Ok(BootLog {
            serial,
            ended_by_itself,
            duration: self.started.elapsed(),
        })
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        // Fails only when the machine has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(
    rig: &VmRig,
    image: &Path,
    initrd: &Path,
    options: &BootOptions,
    monitor: &Path,
) -> io::Result<Command> {
    let image = image.to_str().filter(|path| !path.contains(',')).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "QEMU takes no image path with a comma or beyond UTF-8",
        )
    })?;
    let (machine, devices, network, for_machine): (_, &[&str], _, _) = match rig.vmm {
        // Without an option ROM, which only a start over the network would need.
        Vmm::QemuQ35 => (
            "q35",
            &["virtio-blk-pci,drive=d0"],
            "virtio-net-pci,romfile=,netdev=n0",
            "",
        ),
        // Without the words on the kernel's command line half of the boots hang while the kernel measures its clock;
        // without the keyboard controller, which Firecracker has too, `reboot=k` has nothing to talk to, and some
        // machines hang where they should end.
        Vmm::QemuMicrovm => (
            "microvm,rtc=on",
            &["virtio-blk-device,drive=d0", "i8042"],
            "virtio-net-device,netdev=n0",
            " tsc_early_khz=1000000 no_timer_check",
        ),
    };
    let mode = if options.read_only { "ro" } else { "rw" };
    let mut arguments = format!(
        "console=ttyS0 reboot=k panic=-1 quiet {mode} init={}{for_machine}",
        options.init
    );
    for argument in &options.kernel_arguments {
        arguments.push(' ');
        arguments.push_str(argument);
    }
    if !options.command.is_empty() {
        arguments.push_str(" -- ");
        arguments.push_str(&options.command.join(" "));
    }
    let snapshot = if options.keep_writes { "off" } else { "on" };
    let mut command = Command::new(&rig.program);
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-nographic",
            "-serial",
            "stdio",
            "-no-reboot",
        ])
        .args(["-M", machine, "-accel", "tcg", "-cpu", "max", "-smp", "1"])
        .args(["-m", &options.memory_mib.to_string()])
        .arg("-monitor")
        .arg(format!("unix:{},server=on,wait=off", monitor.display()))
        .arg("-kernel")
        .arg(&rig.kernel.image)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", &arguments])
        .args([
            "-drive",
            &format!("file={image},if=none,id=d0,format=raw,snapshot={snapshot}"),
        ])
        .args(devices.iter().flat_map(|device| ["-device", device]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(port) = options.forward_to {
        command
            .arg("-netdev")
            .arg(format!(
                "user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:0-{GUEST_ADDRESS}:{port}"
            ))
            .args(["-device", network]);
    }
    Ok(command)
}
