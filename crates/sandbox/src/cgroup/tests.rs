use std::{collections::BTreeMap, fs, path::Path};

use super::{
    detect::{Version, detect},
    *,
};

/// What a host of each kind says. Taken from Debian 12 with `systemd.unified_cgroup_hierarchy=1` and `=0`, from a
/// container, and from a machine that mounts everything by hand.
const V2: (&str, &str) = (
    "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
    "0::/system.slice/builderd.service\n",
);
const V1: (&str, &str) = (
    "35 34 0:30 / /sys/fs/cgroup/memory rw shared:15 - cgroup cgroup rw,memory\n\
     36 34 0:31 / /sys/fs/cgroup/cpu,cpuacct rw shared:16 - cgroup cgroup rw,cpu,cpuacct\n\
     37 34 0:32 / /sys/fs/cgroup/pids rw shared:17 - cgroup cgroup rw,pids\n\
     38 34 0:33 / /sys/fs/cgroup/blkio rw shared:17 - cgroup cgroup rw,blkio\n",
    "5:blkio:/\n4:pids:/user.slice\n3:cpu,cpuacct:/user.slice\n2:memory:/user.slice/a b\n",
);
const HYBRID: (&str, &str) = (
    "34 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
     35 23 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
     36 23 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
     37 23 0:32 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n\
     38 23 0:33 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
     39 23 0:34 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,name=systemd\n",
    "9:name=systemd:/\n8:pids:/\n4:memory:/process/0c\n2:cpuacct:/\n1:cpu:/\n0::/\n",
);
const CONTAINER: (&str, &str) = (
    "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
    "0::/docker/abc\n",
);

fn lines(host: &detect::Host) -> Vec<String> {
    let line = |hierarchy: &Hierarchy| {
        let names: Vec<_> = hierarchy.controllers.iter().map(ToString::to_string).collect();
        format!("{} {}", hierarchy.directory.display(), names.join(","))
    };
    host.hierarchies.iter().map(line).collect()
}

#[test]
fn every_kind_of_host_is_understood() {
    let all = "cpuset cpu io memory hugetlb pids rdma misc\n";
    let cases = [
        (
            "v2",
            V2,
            all,
            Version::V2,
            vec!["/sys/fs/cgroup/system.slice/builderd.service memory,pids,cpu,cpuacct"],
        ),
        (
            "v1",
            V1,
            "",
            Version::V1,
            vec![
                "/sys/fs/cgroup/pids/user.slice pids",
                "/sys/fs/cgroup/cpu,cpuacct/user.slice cpu,cpuacct",
                "/sys/fs/cgroup/memory/user.slice/a b memory",
            ],
        ),
        (
            "hybrid",
            HYBRID,
            "hugetlb\n",
            Version::Hybrid,
            vec![
                "/sys/fs/cgroup/pids/ pids",
                "/sys/fs/cgroup/memory/process/0c memory",
                "/sys/fs/cgroup/cpuacct/ cpuacct",
                "/sys/fs/cgroup/cpu/ cpu",
                "/sys/fs/cgroup/unified/ cpuacct",
            ],
        ),
        (
            "container",
            CONTAINER,
            all,
            Version::V2,
            vec!["/sys/fs/cgroup/ memory,pids,cpu,cpuacct"],
        ),
    ];
    for (name, (mountinfo, own), controllers, version, expected) in cases {
        let host = detect(mountinfo, own, |_| Some(controllers.to_owned()));
        assert_eq!(host.version, version, "{name}");
        assert_eq!(lines(&host), expected, "{name}");
    }
}

#[test]
fn what_cannot_be_reached_is_left_out() {
    // A group above the namespace's own root, one that is not below the mount, and lines that are none.
    let host = detect(CONTAINER.0, "0::/../other\nnonsense\n\n", |_| None);
    assert!(host.hierarchies.is_empty());
    let host = detect(CONTAINER.0, "0::/docker/other\n", |_| None);
    assert!(host.hierarchies.is_empty());
}

/// A tree of plain files that look like control groups: `mkdir` there makes the files that the kernel would.
fn fixture(top: &Path, files: &[&str]) {
    fs::create_dir_all(top).unwrap();
    for file in files {
        fs::write(top.join(file), "").unwrap();
    }
}

fn read_all(top: &Path) -> BTreeMap<String, String> {
    fs::read_dir(top)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| {
            let text = fs::read_to_string(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), text)
        })
        .filter(|(_, text)| !text.is_empty())
        .collect()
}

/// The files of a group are there before the limits are written, as the kernel has them.
fn limited(hierarchies: &[Hierarchy], files: &[&str]) -> BTreeMap<String, String> {
    let limits = GroupLimits {
        memory_bytes: Some((64 << 20) + 1),
        cpu_millicores: Some(1500),
        processes: Some(32),
    };
    let group = Group::create(hierarchies, "box").unwrap();
    for hierarchy in hierarchies {
        fixture(&hierarchy.directory.join("box"), files);
    }
    for (path, value) in group.limit_files(&limits) {
        write(&path, &value).unwrap();
    }
    group.check_limits(&limits).unwrap();
    let mut found = BTreeMap::new();
    for hierarchy in hierarchies {
        found.extend(read_all(&hierarchy.directory.join("box")));
    }
    for hierarchy in hierarchies {
        fs::remove_dir_all(hierarchy.directory.join("box")).unwrap();
    }
    found
}

#[test]
fn limits_are_written_as_each_version_wants_them() {
    let directory = tempfile::tempdir().unwrap();
    let all = [
        Controller::Memory,
        Controller::Processes,
        Controller::Cpu,
        Controller::CpuTime,
    ];
    let unified = Hierarchy {
        directory: directory.path().join("unified"),
        top: directory.path().to_owned(),
        unified: true,
        controllers: all.to_vec(),
    };
    fs::create_dir(&unified.directory).unwrap();
    let found = limited(&[unified], &["memory.max", "pids.max", "cpu.max"]);
    let expected = [
        ("cpu.max", "150000 100000"),
        ("memory.max", "67108864"),
        ("pids.max", "32"),
    ];
    assert_eq!(
        found,
        expected
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
            .into()
    );

    let old: Vec<Hierarchy> = all
        .into_iter()
        .map(|controller| Hierarchy {
            directory: directory.path().join(controller.name()),
            top: directory.path().to_owned(),
            unified: false,
            controllers: vec![controller],
        })
        .collect();
    for hierarchy in &old {
        fs::create_dir(&hierarchy.directory).unwrap();
    }
    let without_swap_limit = [
        "memory.limit_in_bytes",
        "memory.swappiness",
        "pids.max",
        "cpu.cfs_period_us",
        "cpu.cfs_quota_us",
    ];
    let found = limited(&old, &without_swap_limit);
    assert_eq!(found.get("memory.swappiness").map(String::as_str), Some("0"));
    let files = [
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.swappiness",
        "pids.max",
        "cpu.cfs_period_us",
        "cpu.cfs_quota_us",
    ];
    // The file for swap is looked for when the limits are made, so it must be there by then.
    let found = limited(&old, &files);
    let expected = [
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "150000"),
        ("memory.limit_in_bytes", "67108864"),
        ("memory.memsw.limit_in_bytes", "67108864"),
        ("pids.max", "32"),
    ];
    assert_eq!(
        found,
        expected
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
            .into()
    );
}

#[test]
fn usage_is_read_from_either_version() {
    let directory = tempfile::tempdir().unwrap();
    let make = |name: &str, unified, controllers: &[Controller]| {
        let hierarchy = Hierarchy {
            directory: directory.path().join(name),
            top: directory.path().to_owned(),
            unified,
            controllers: controllers.to_vec(),
        };
        fs::create_dir(&hierarchy.directory).unwrap();
        hierarchy
    };
    let both = [Controller::Memory, Controller::CpuTime];
    let unified = [make("unified", true, &both)];
    let group = Group::create(&unified, "g").unwrap();
    let place = unified[0].directory.join("g");
    fs::write(place.join("memory.peak"), "4096\n").unwrap();
    // The total that counts is not the one that only begins with the same letters.
    fs::write(
        place.join("memory.events"),
        "low 0\noom 1\noom_kill 3\noom_group_kill 1\n",
    )
    .unwrap();
    fs::write(place.join("cpu.stat"), "usage_usec 1500000\nuser_usec 1\n").unwrap();
    let expected = GroupUsage {
        cpu_time: std::time::Duration::from_millis(1500),
        peak_memory_bytes: 4096,
        oom_kills: 3,
    };
    assert_eq!(group.usage(), expected);
    fs::remove_dir_all(&place).unwrap();

    let old = [
        make("memory", false, &both[..1]),
        make("cpuacct", false, &both[1..]),
    ];
    let group = Group::create(&old, "g").unwrap();
    let place = |index: usize| old[index].directory.join("g");
    fs::write(place(0).join("memory.max_usage_in_bytes"), "4096\n").unwrap();
    fs::write(
        place(0).join("memory.oom_control"),
        "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    )
    .unwrap();
    fs::write(place(1).join("cpuacct.usage"), "1500000000\n").unwrap();
    assert_eq!(group.usage(), expected);
    for index in 0..2 {
        fs::remove_dir_all(place(index)).unwrap();
    }
}

#[test]
fn a_host_without_a_controller_is_refused_by_name() {
    let host = detect(V2.0, V2.1, |_| Some("cpu pids".to_owned()));
    match Groups::below(&host, "test") {
        Err(GroupError::NoController { controller }) => assert_eq!(controller, "memory"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_groups_of_dead_processes_of_this_namespace_are_swept() {
    let own = sweep::identity();
    let (namespace, _) = own.split_once('-').unwrap();
    let cases = [
        ("this process", own.clone(), false),
        ("one that is gone", format!("{namespace}-1-99999999999-0"), true),
        ("another namespace", "1-1-99999999999-0".to_owned(), false),
        ("more parts", format!("{namespace}-1-2-3-4"), false),
        ("no number", "daemon".to_owned(), false),
        ("nothing", String::new(), false),
    ];
    for (name, identity, expected) in cases {
        assert_eq!(sweep::is_left_behind(&identity), expected, "{name}");
    }
}

/// Control groups in which the groups of launching processes are made by hand, one in each hierarchy; removed with this.
struct Outer {
    groups: Vec<std::path::PathBuf>,
}

impl Outer {
    fn new(host: &detect::Host, name: &str) -> Option<Self> {
        let tops = host.hierarchies.iter().map(|hierarchy| &hierarchy.top);
        let outer = Self {
            groups: tops.map(|top| top.join(format!("{name}.scope"))).collect(),
        };
        let all_made = outer.groups.iter().all(|group| fs::create_dir(group).is_ok());
        (all_made && !outer.groups.is_empty()).then_some(outer)
    }

    /// All groups that launching processes have in it.
    fn bases(&self) -> Vec<std::path::PathBuf> {
        let entries = self.groups.iter().flat_map(|group| fs::read_dir(group).unwrap());
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        for group in self.groups.iter().flat_map(|group| sweep::tree(group)) {
            let _ = fs::remove_dir(group);
        }
    }
}

fn this_host() -> detect::Host {
    let read = |path: &str| fs::read_to_string(path).unwrap();
    detect(
        &read("/proc/self/mountinfo"),
        &read("/proc/self/cgroup"),
        |path| fs::read_to_string(path).ok(),
    )
}

/// The identity of a process that has ended, and that nobody has waited for.
fn identity_of_a_zombie(zombie: &std::process::Child) -> String {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
    let identity = sweep::identity_of(zombie.id());
    let number = Pid::from_raw(zombie.id().cast_signed()).unwrap();
    waitid(WaitId::Pid(number), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
    identity
}

/// A supervisor may start the next daemon in another group, and before it has waited for the last one.
#[test]
fn privileged_groups_of_an_earlier_start_are_found_wherever_it_was() {
    let host = this_host();
    let name = format!("sandbox-sweep-{}", std::process::id());
    let Some(outer) = Outer::new(&host, &name) else {
        return test_support::lab::skip("no control groups that can be made here");
    };
    let mut zombie = std::process::Command::new("true").spawn().unwrap();
    let identity = identity_of_a_zombie(&zombie);
    for group in &outer.groups {
        fs::create_dir_all(group.join(format!("{name}-{identity}")).join("box")).unwrap();
        fs::create_dir(group.join(format!("{name}-{}", sweep::identity()))).unwrap();
    }
    let tops: Vec<&Path> = host.hierarchies.iter().map(|hierarchy| &*hierarchy.top).collect();
    let survivors = sweep::sweep(&tops, &name, sweep::PATIENCE);
    let left = outer.bases();
    zombie.wait().unwrap();
    assert_eq!(survivors, []);
    assert_eq!(
        left.len(),
        outer.groups.len(),
        "that of a living process stays: {left:?}"
    );
}

#[test]
fn privileged_what_outlives_a_sweep_is_named_and_keeps_its_group_until_it_is_gone() {
    let host = this_host();
    let name = format!("sandbox-survivor-{}", std::process::id());
    let (frozen, file) = match test_support::frozen::Frozen::new() {
        Ok(made) => made,
        Err(reason) => {
            return test_support::lab::skip(format!("no file system can be frozen here: {reason}"));
        }
    };
    let Some(outer) = Outer::new(&host, &name) else {
        return test_support::lab::skip("no control groups that can be made here");
    };
    let mut zombie = std::process::Command::new("true").spawn().unwrap();
    let identity = identity_of_a_zombie(&zombie);
    // Whoever it is: it waits for what never comes, so that it is in its groups before it sleeps.
    let mut stuck = std::process::Command::new("sh")
        .args(["-c", "read line; echo line"])
        .stdin(std::process::Stdio::piped())
        .stdout(file)
        .spawn()
        .unwrap();
    for group in &outer.groups {
        let base = group.join(format!("{name}-{identity}"));
        for below in ["idle/box-0", "stuck/box-1"] {
            fs::create_dir_all(base.join(below)).unwrap();
        }
        fs::write(base.join("stuck/box-1/cgroup.procs"), stuck.id().to_string()).unwrap();
    }
    drop(stuck.stdin.take());
    let stat = format!("/proc/{}/stat", stuck.id());
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while !fs::read_to_string(&stat).unwrap().contains(") D ") {
        assert!(std::time::Instant::now() < deadline, "it writes");
        std::thread::yield_now();
    }

    let tops: Vec<&Path> = host.hierarchies.iter().map(|hierarchy| &*hierarchy.top).collect();
    let survivors = sweep::sweep(&tops, &name, std::time::Duration::from_millis(200));
    let names: Vec<&str> = survivors.iter().map(Survivor::name).collect();
    let gone_while_frozen = survivors.iter().any(Survivor::is_gone);
    let kept = outer.bases();
    let idle_is_gone = kept.iter().all(|base| !base.join("idle").exists());
    frozen.thaw();
    let status = stuck.wait().unwrap();
    zombie.wait().unwrap();
    assert_eq!(names, ["stuck"]);
    assert!(!gone_while_frozen && idle_is_gone);
    assert_eq!(kept.len(), outer.groups.len(), "its limits hold: {kept:?}");
    assert!(!status.success(), "it was killed: {status}");
    assert!(survivors.iter().all(Survivor::is_gone));
    assert_eq!(outer.bases(), Vec::<std::path::PathBuf>::new());
}
