//! Every attack, what each layer alone makes of it, and what a kernel may lack so that nobody at all can make it.
//!
//! The known ways out of containers and build sandboxes, and what tries them here. What is in quotes is a word of this
//! table; the rest are tests in `escapes.rs`, or in the file that is named.
//!
//! | class | tried by |
//! |---|---|
//! | the launching program through `/proc/self/exe` (CVE-2019-5736) | `a_program_cannot_be_changed_by_who_runs_it` |
//! | leaked descriptor, directory to start from (CVE-2024-21626) | "host-file=../…", "from-directory", `only_named_descriptors_are_in_the_box` |
//! | links in place of what is mounted over (CVE-2025-31133, 52565, 52881, 2019-19921), a directory swapped during the set-up (CVE-2024-45310), caches and mounts of builds (CVE-2024-1753, 9675, 23651 to 23653) | not applicable: the root is empty, nothing is mounted into it and no path comes from a tenant |
//! | `release_agent` (CVE-2022-0492) | "groups", "mount" |
//! | mount API, new and other namespaces (CVE-2022-0185) | "mount-api", "user-namespace", "join-namespace", "clone3", "change-root", "pivot-root" |
//! | an output's descriptor given to somebody else (CVE-2024-27297) | "abstract-socket", `no_descriptor_passes_through_a_socket`; that an output is only read after the end of its box is up to who launches |
//! | an output with the set-user-id bit (CVE-2024-38531) | "set-user-id", "owner", "file-capability", "mode" |
//! | typing into the terminal (CVE-2017-5226) | "console", `a_terminal_takes_no_typing_from_a_box` (`kills.rs`) |
//! | other processes, `/proc/1` | "signal" to "ptrace", "proc", `a_box_cannot_touch_a_process_of_another`; while a box is set up nothing of a tenant's runs in it |
//! | device nodes | "device"; nothing of an image is in the box |
//! | propagation of mounts | `a_mount_stays_in_its_box` |
//! | keyrings, IPC, locks | "keyring", "file-lock", "record-lock", `boxes_share_no_queue_no_segment_and_no_key` (`kills.rs`) |
//! | `/proc/sys`, `sysrq-trigger`, `kmsg`, `kcore`, `/sys` | "open-to-write", "host-file=/proc/kcore", "kernel-log" |
//! | the root of the box | "host-write={root}" and those that follow it |
//! | processes, zombies, memory, time, idleness, stopped and deaf programs | `boxes.rs`, `ending.rs` |
//! | descriptors, floods of output | `kills.rs` |
//! | space and inodes | nothing can be made in the box; what is given: `no_call_gives_a_file_more_than_its_limit`, `boxes.rs` |
//! | many or long arguments | not applicable: the arguments are the launching program's |
//! | network: loopback, IPv6, UDP, raw and abstract sockets, the address of cloud metadata | "tcp" to "kernel-crypto", `no_address_can_be_reached` |
//! | names, proxies and allowed hosts | not applicable: there is no network to allow a part of |
//! | residue after any end | `kills.rs`, `steps.rs`, `boxes.rs` |
//! | a layer that cannot be had | `fail_closed.rs`, `a_box_without_a_wanted_layer_is_refused` |
//! | young parts of the kernel, other architectures, code that was not there | the rest of the table |

use std::{fs, path::Path};

use libc::{
    EACCES, EADDRNOTAVAIL, EAFNOSUPPORT, ECONNREFUSED, EINVAL, ENETUNREACH, ENODEV, ENOENT, ENOSYS, ENOTTY,
    EPERM, EROFS, ESRCH,
};

use End::{Depends, Dies, Fails, Gains};

/// How an attack ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It gains what it wants.
    Gains,
    /// The kernel refuses with this error.
    Fails(i32),
    /// This signal ends the attacker before it can say anything.
    Dies(i32),
    /// Either: the host's settings and the kernel's version decide. Never how an attack was seen to end.
    Depends(i32),
}

/// How an attack ends where the kernel lacks what it needs, and whether it does, seen elsewhere.
type Lack = (End, fn() -> bool);

/// One attack. Outside of every box it gains what it wants.
pub(crate) struct Attack {
    /// What the probe is told. Words in braces stand for what the host has.
    pub(crate) words: &'static str,
    /// In a box of namespaces alone.
    pub(crate) namespaces: End,
    /// With the list of system calls alone.
    pub(crate) seccomp: End,
    /// With landlock alone.
    pub(crate) landlock: End,
    /// Why it may fail outside.
    lack: &'static [Lack],
}

impl Attack {
    /// How it ends with all layers. The list of system calls is asked before the kernel does anything.
    pub(crate) fn boxed(&self) -> End {
        [self.seccomp, self.namespaces, self.landlock]
            .into_iter()
            .find(|end| matches!(end, Fails(_) | Dies(_)))
            .unwrap_or(Gains)
    }

    /// Whether it ended so, outside, because nobody can make it here.
    pub(crate) fn is_lacking(&self, outside: End) -> bool {
        self.lack
            .iter()
            .any(|(end, is_lacking)| *end == outside && is_lacking())
    }

    const fn unless(self, lack: &'static [Lack]) -> Self {
        Self { lack, ..self }
    }
}

impl End {
    pub(crate) fn allows(self, seen: Self) -> bool {
        match self {
            Depends(errno) => seen == Gains || seen == Fails(errno),
            other => seen == other,
        }
    }
}

const fn attack(words: &'static str, namespaces: End, seccomp: End, landlock: End) -> Attack {
    Attack {
        words,
        namespaces,
        seccomp,
        landlock,
        lack: &[],
    }
}

/// Namespaces, the list of system calls, landlock: each alone.
pub(crate) const ATTACKS: &[Attack] = &[
    // Files.
    attack(
        "host-file=/etc/passwd",
        Fails(ENOENT),
        Fails(ENOSYS),
        Fails(EACCES),
    ),
    attack("host-write={path}", Fails(ENOENT), Fails(ENOSYS), Fails(EACCES)),
    attack("file-status=/etc/passwd", Fails(ENOENT), Gains, Gains),
    attack("proc", Fails(ENOENT), Fails(ENOSYS), Fails(EACCES)),
    attack("device={path}", Fails(ENOENT), Fails(ENOSYS), Fails(EACCES)),
    attack("file-handle=3", Fails(EPERM), Fails(ENOSYS), Fails(EACCES)),
    // Descriptor 5 is the root directory of the host, 6 a file of the host that can be written.
    attack(
        "host-file=../../../../etc/passwd",
        Fails(ENOENT),
        Fails(ENOSYS),
        Fails(EACCES),
    ),
    attack("from-directory=5", Gains, Fails(ENOSYS), Fails(EACCES)),
    attack("set-user-id=6", Fails(EPERM), Fails(ENOSYS), Gains),
    attack("owner=6", Fails(EPERM), Fails(ENOSYS), Gains),
    attack("file-capability=6", Fails(EPERM), Fails(ENOSYS), Gains),
    attack("file-lock", Gains, Fails(ENOSYS), Gains),
    attack("record-lock", Gains, Fails(EPERM), Gains),
    // The root of the box, which outside is that of the host.
    attack("host-write={root}", Fails(EROFS), Fails(ENOSYS), Fails(EACCES)),
    attack("directory={root}", Fails(EROFS), Fails(ENOSYS), Fails(EACCES)),
    attack("link={root}", Fails(EROFS), Fails(ENOSYS), Fails(EACCES)),
    attack("device={root}", Fails(EROFS), Fails(ENOSYS), Fails(EACCES)),
    attack("unix-socket={root}", Fails(EROFS), Fails(ENOSYS), Fails(EACCES)),
    attack("mode=/", Fails(EROFS), Fails(ENOSYS), Gains),
    attack("remount-root", Fails(EPERM), Fails(ENOSYS), Fails(EPERM)),
    // What would change the kernel, or end the machine. It is opened, and nothing is written.
    attack(
        "open-to-write=/proc/sys/kernel/core_pattern",
        Fails(ENOENT),
        Fails(ENOSYS),
        Fails(EACCES),
    ),
    attack(
        "open-to-write=/proc/sysrq-trigger",
        Fails(ENOENT),
        Fails(ENOSYS),
        Fails(EACCES),
    )
    .unless(&[(Fails(ENOENT), || !Path::new("/proc/sysrq-trigger").exists())]),
    attack(
        "open-to-write=/dev/kmsg",
        Fails(ENOENT),
        Fails(ENOSYS),
        Fails(EACCES),
    ),
    attack(
        "host-file=/proc/kcore",
        Fails(ENOENT),
        Fails(ENOSYS),
        Fails(EACCES),
    )
    .unless(&[
        (Fails(ENOENT), || !Path::new("/proc/kcore").exists()),
        (Fails(EPERM), || {
            Path::new("/sys/kernel/security/lockdown").exists()
        }),
    ]),
    attack(
        "open-to-write=/sys/module/kernel/parameters/panic",
        Fails(ENOENT),
        Fails(ENOSYS),
        Fails(EACCES),
    ),
    // Network.
    attack("tcp={tcp}", Fails(ENETUNREACH), Fails(ENOSYS), Depends(EACCES)),
    attack("tcp={tcp6}", Fails(EADDRNOTAVAIL), Fails(ENOSYS), Depends(EACCES)).unless(&[
        (Fails(EADDRNOTAVAIL), no_loopback_of_version_6),
        (Fails(EAFNOSUPPORT), no_loopback_of_version_6),
    ]),
    attack("udp={udp}", Fails(ENETUNREACH), Fails(ENOSYS), Gains),
    attack(
        "abstract-socket={name}",
        Fails(ECONNREFUSED),
        Fails(ENOSYS),
        Depends(EPERM),
    ),
    attack("raw-socket", Fails(EPERM), Fails(ENOSYS), Gains),
    attack("vsock", Gains, Fails(ENOSYS), Gains).unless(&[(Fails(EAFNOSUPPORT), || no_protocol("AF_VSOCK"))]),
    attack("kernel-crypto", Gains, Fails(ENOSYS), Gains)
        .unless(&[(Fails(EAFNOSUPPORT), || no_protocol("ALG"))]),
    // Namespaces and mounts.
    attack("user-namespace", Gains, Fails(ENOSYS), Gains),
    attack(
        "join-namespace={process}",
        Fails(ESRCH),
        Fails(ENOSYS),
        Fails(EPERM),
    ),
    attack("join-namespace=parent", Fails(EPERM), Fails(ENOSYS), Fails(EPERM)),
    attack("mount", Fails(EPERM), Fails(ENOSYS), Fails(EPERM)),
    // In a user namespace of its own a box may mount both and read there: of a hierarchy that it has joined its own
    // group, of any other the names of the host's. The files stay the host's, and cannot be written.
    attack(
        "groups=cgroup:{groups}:release_agent",
        Fails(EACCES),
        Fails(ENOSYS),
        Fails(EPERM),
    )
    .unless(&[(Fails(ENODEV), || no_file_system("cgroup"))]),
    attack(
        "groups=cgroup2::cgroup.procs",
        Fails(EACCES),
        Fails(ENOSYS),
        Fails(EPERM),
    ),
    attack("mount-api", Fails(EPERM), Fails(ENOSYS), Gains),
    attack("change-root", Fails(EPERM), Fails(ENOSYS), Gains),
    attack("pivot-root", Fails(EPERM), Fails(ENOSYS), Fails(EPERM)),
    // Rights.
    attack("root", Fails(EINVAL), Fails(ENOSYS), Gains),
    attack("raise-limit", Fails(EPERM), Fails(EPERM), Gains)
        .unless(&[(Fails(EPERM), no_capability_for_resources)]),
    attack("priority", Fails(EACCES), Fails(ENOSYS), Gains),
    attack("personality", Gains, Fails(ENOSYS), Gains),
    attack("dumpable", Gains, Fails(EINVAL), Gains),
    attack("own-filter", Gains, Fails(EINVAL), Gains),
    // Descriptor 7 is the console.
    attack("console=7", Fails(EPERM), Fails(ENOTTY), Gains)
        .unless(&[(Fails(ENOTTY), || fs::File::open("/dev/tty0").is_err())]),
    // Processes.
    attack("signal={process}", Fails(ESRCH), Fails(ENOSYS), Depends(EPERM)),
    attack("thread-signal={process}", Fails(ESRCH), Gains, Depends(EPERM)),
    attack("descriptor-owner={process}", Fails(ESRCH), Fails(EPERM), Gains),
    attack("limits-of={process}", Fails(ESRCH), Fails(EPERM), Gains),
    attack("parent-memory", Fails(EPERM), Fails(ENOSYS), Fails(EPERM)),
    attack("write-parent-memory", Fails(EPERM), Fails(ENOSYS), Fails(EPERM)),
    attack("parent-descriptor=256", Fails(EPERM), Fails(ENOSYS), Fails(EPERM)),
    attack("ptrace", Gains, Fails(ENOSYS), Gains),
    attack("process", Gains, Fails(EPERM), Gains),
    attack("clone3", Gains, Fails(ENOSYS), Gains),
    // Programs. Descriptor 3 is a file of the host, 4 is in memory and can be written.
    attack("program=/bin/true", Fails(ENOENT), Fails(EPERM), Fails(EACCES)),
    attack("execute=3:3", Gains, Fails(ENOSYS), Fails(EACCES)),
    attack("execute=4:4", Gains, Fails(ENOSYS), Gains),
    // The number by which the filter knows the one execution that it lets pass.
    attack("execute=3:258", Gains, Fails(EINVAL), Fails(EACCES)),
    attack("execute=4:258", Gains, Fails(EINVAL), Gains),
    attack("execute-memory=4", Gains, Fails(ENOSYS), Gains),
    attack("executable-memory", Gains, Fails(EPERM), Gains),
    attack("made-executable", Gains, Fails(EPERM), Gains),
    // Parts of the kernel.
    attack("keyring", Gains, Fails(ENOSYS), Gains).unless(&[(Fails(ENOSYS), || no_call("add_key"))]),
    attack("io-uring", Depends(EPERM), Fails(EPERM), Gains).unless(&[
        (Fails(ENOSYS), || no_call("io_uring_setup")),
        (Fails(EPERM), || is_set("/proc/sys/kernel/io_uring_disabled", "2")),
    ]),
    attack("bpf", Depends(EPERM), Fails(ENOSYS), Gains).unless(&[(Fails(ENOSYS), || no_call("bpf"))]),
    attack("performance-events", Depends(EACCES), Fails(ENOSYS), Gains)
        .unless(&[(Fails(ENOSYS), || no_call("perf_event_open"))]),
    attack("page-faults", Depends(EPERM), Fails(ENOSYS), Gains)
        .unless(&[(Fails(ENOSYS), || no_call("userfaultfd"))]),
    attack("module", Fails(EPERM), Fails(ENOSYS), Gains).unless(&[
        (Fails(ENOSYS), || no_call("init_module")),
        (Fails(EPERM), || is_set("/proc/sys/kernel/modules_disabled", "1")),
    ]),
    attack("other-kernel", Fails(EPERM), Fails(ENOSYS), Gains).unless(&[
        (Fails(ENOSYS), || no_call("kexec_load")),
        (Fails(EPERM), || {
            is_set("/proc/sys/kernel/kexec_load_disabled", "1")
                || Path::new("/sys/kernel/security/lockdown").exists()
        }),
    ]),
    attack("swap", Fails(EPERM), Fails(ENOSYS), Gains).unless(&[(Fails(ENOSYS), || no_call("swapon"))]),
    attack("clock", Fails(EPERM), Fails(ENOSYS), Gains),
    attack("kernel-log", Fails(EPERM), Fails(ENOSYS), Gains),
    #[cfg(target_arch = "x86_64")]
    attack("interrupt", Gains, Dies(libc::SIGSYS), Gains).unless(&[(Dies(libc::SIGSEGV), || {
        !Path::new("/proc/sys/abi/vsyscall32").exists()
            || words_of("/proc/cmdline").contains("ia32_emulation")
    })]),
    #[cfg(target_arch = "x86_64")]
    attack("x32", Gains, Fails(ENOSYS), Gains).unless(&[(Fails(ENOSYS), || {
        no_symbol("x32_sys_call") || is_set("/sys/module/syscall/parameters/x32", "N")
    })]),
];

fn words_of(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn is_set(path: &str, value: &str) -> bool {
    words_of(path).trim() == value
}

/// Whether the kernel's table of symbols is there and has no such function. A call that was left out has a weak symbol.
fn no_symbol(end: &str) -> bool {
    let all = words_of("/proc/kallsyms");
    !all.is_empty()
        && !all
            .lines()
            .any(|line| line.contains(" T ") && line.ends_with(end) && !line.contains("__pfx_"))
}

fn no_call(name: &str) -> bool {
    no_symbol(&format!("_sys_{name}"))
}

/// Whether no such family of sockets is registered. Asked after the attack, which loads a module where there is one.
fn no_protocol(name: &str) -> bool {
    !words_of("/proc/net/protocols")
        .lines()
        .any(|line| line.split_ascii_whitespace().next() == Some(name))
}

fn no_loopback_of_version_6() -> bool {
    !words_of("/proc/net/if_inet6").contains(" lo\n")
}

fn no_file_system(name: &str) -> bool {
    !words_of("/proc/filesystems")
        .lines()
        .any(|line| line.split_ascii_whitespace().last() == Some(name))
}

/// Whether root itself may not raise limits here, as in some containers.
fn no_capability_for_resources() -> bool {
    const RESOURCES: u32 = 24;
    let status = words_of("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = u64::from_str_radix(line.unwrap_or_default().trim(), 16).unwrap();
    effective & (1 << RESOURCES) == 0
}
