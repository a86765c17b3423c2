use super::*;

/// What the filter is shown: `struct seccomp_data`.
#[derive(Clone, Copy)]
struct Call {
    number: u32,
    architecture: u32,
    arguments: [u64; 6],
}

/// Runs the filter as the kernel would, and insists on what the kernel's own check insists on.
fn run(filter: &[Instruction], call: &Call) -> u32 {
    let mut data = Vec::new();
    data.extend(call.number.to_le_bytes());
    data.extend(call.architecture.to_le_bytes());
    data.extend(0_u64.to_le_bytes());
    for argument in call.arguments {
        data.extend(argument.to_le_bytes());
    }
    let mut accumulator = 0_u32;
    let mut at = 0_usize;
    loop {
        let instruction = filter[at];
        let take = |condition: bool| {
            usize::from(if condition {
                instruction.on_true
            } else {
                instruction.on_false
            })
        };
        match instruction.code {
            LOAD => {
                let offset = instruction.operand as usize;
                assert_eq!(offset % 4, 0);
                accumulator = u32::from_le_bytes(data[offset..offset + 4].try_into().unwrap());
            }
            AND => accumulator &= instruction.operand,
            JUMP_EQUAL => at += take(accumulator == instruction.operand),
            JUMP_AT_LEAST => at += take(accumulator >= instruction.operand),
            JUMP_ANY_SET => at += take(accumulator & instruction.operand != 0),
            RETURN => return instruction.operand,
            other => panic!("instruction {at} has an unknown code {other:#x}"),
        }
        at += 1;
    }
}

fn verdict(number: libc::c_long, arguments: [u64; 6]) -> u32 {
    let call = Call {
        number: super::number(number),
        architecture: ARCHITECTURE,
        arguments,
    };
    run(&filter(Calls::Worker, 258), &call)
}

const NO_SUCH_CALL: u32 = RETURN_ERRNO | errno(libc::ENOSYS);
const NOT_PERMITTED: u32 = RETURN_ERRNO | errno(libc::EPERM);

#[test]
fn every_number_that_is_not_listed_is_unknown() {
    let filter = filter(Calls::Worker, 258);
    assert!(filter.len() < 4096, "the kernel takes no more: {}", filter.len());
    let listed: Vec<u32> = calls::worker().map(|rule| rule.number).collect();
    let execveat = super::number(libc::SYS_execveat);
    let mut allowed = 0;
    // All numbers that exist and then some; those with the bit of x32; and the ends of the range.
    let numbers = (0..2048)
        .chain(X32..X32 + 2048)
        .chain([u32::MAX, u32::MAX - 1, X32 - 1, i32::MAX as u32]);
    for number in numbers {
        for arguments in [[0; 6], [u64::MAX; 6]] {
            let call = Call {
                number,
                architecture: ARCHITECTURE,
                arguments,
            };
            let verdict = run(&filter, &call);
            if listed.contains(&number) || number == execveat {
                allowed += usize::from(verdict == RETURN_ALLOW);
            } else {
                assert_eq!(verdict, NO_SUCH_CALL, "call {number} with {arguments:?}");
            }
        }
    }
    assert!(allowed > 60, "{allowed}");
}

#[test]
fn another_architecture_ends_the_process() {
    let filter = filter(Calls::Worker, 258);
    // i386, arm, x86-64, aarch64, and none at all.
    for architecture in [0x4000_0003, 0x4000_0028, 0xC000_003E, 0xC000_00B7, 0] {
        if architecture == ARCHITECTURE {
            continue;
        }
        for number in 0..600 {
            let call = Call {
                number,
                architecture,
                arguments: [0; 6],
            };
            assert_eq!(
                run(&filter, &call),
                RETURN_KILL_PROCESS,
                "{architecture:#x} {number}"
            );
        }
    }
}

#[test]
fn arguments_decide_where_a_call_has_two_faces() {
    let thread = 0x003d_0f00;
    let dup = libc::F_DUPFD_CLOEXEC as u64;
    let lock = libc::F_SETLK as u64;
    let cases: [(&str, libc::c_long, [u64; 6], u32); 23] = [
        ("a thread", libc::SYS_clone, [thread, 0, 0, 0, 0, 0], RETURN_ALLOW),
        ("a process", libc::SYS_clone, [17, 0, 0, 0, 0, 0], NOT_PERMITTED),
        (
            "a user namespace",
            libc::SYS_clone,
            [thread | 0x1000_0000, 0, 0, 0, 0, 0],
            NOT_PERMITTED,
        ),
        (
            "clone3, whose flags are out of sight",
            libc::SYS_clone3,
            [0; 6],
            NO_SUCH_CALL,
        ),
        ("data", libc::SYS_mmap, [0, 4096, 3, 0x22, 0, 0], RETURN_ALLOW),
        ("code", libc::SYS_mmap, [0, 4096, 5, 0x22, 0, 0], NOT_PERMITTED),
        (
            "data become code",
            libc::SYS_mprotect,
            [0, 4096, 4, 0, 0, 0],
            NOT_PERMITTED,
        ),
        (
            "own limits, seen",
            libc::SYS_prlimit64,
            [0, 7, 0, 1, 0, 0],
            RETURN_ALLOW,
        ),
        (
            "own limits, set",
            libc::SYS_prlimit64,
            [0, 7, 1 << 40, 0, 0, 0],
            NOT_PERMITTED,
        ),
        (
            "another's limits",
            libc::SYS_prlimit64,
            [1, 7, 0, 1, 0, 0],
            NOT_PERMITTED,
        ),
        (
            "sharing blocks",
            libc::SYS_ioctl,
            [3, 0x4020_940D, 0, 0, 0, 0],
            RETURN_ALLOW,
        ),
        (
            "typing into the terminal",
            libc::SYS_ioctl,
            [0, 0x5412, 0, 0, 0, 0],
            RETURN_ERRNO | errno(libc::ENOTTY),
        ),
        ("a duplicate", libc::SYS_fcntl, [3, dup, 0, 0, 0, 0], RETURN_ALLOW),
        ("a lock", libc::SYS_fcntl, [3, lock, 0, 0, 0, 0], NOT_PERMITTED),
        (
            "the helper's last act",
            libc::SYS_execveat,
            [258, 1, 1, 1, 0x1000, 0],
            RETURN_ALLOW,
        ),
        (
            "another program",
            libc::SYS_execveat,
            [3, 1, 1, 1, 0x1000, 0],
            NO_SUCH_CALL,
        ),
        (
            "a program by path",
            libc::SYS_execve,
            [1, 1, 1, 0, 0, 0],
            NO_SUCH_CALL,
        ),
        (
            "a name for a thread",
            libc::SYS_prctl,
            [15, 0, 0, 0, 0, 0],
            RETURN_ALLOW,
        ),
        (
            "being traced",
            libc::SYS_prctl,
            [0x5961_6d61, 0, 0, 0, 0, 0],
            RETURN_ERRNO | errno(libc::EINVAL),
        ),
        (
            "a descriptor's status",
            libc::SYS_statx,
            [3, 1, 0x1000, 0, 0, 0],
            RETURN_ALLOW,
        ),
        (
            "a path's status",
            libc::SYS_statx,
            [3, 1, 0, 0, 0, 0],
            NO_SUCH_CALL,
        ),
        (
            "io_uring",
            libc::SYS_io_uring_setup,
            [8, 0, 0, 0, 0, 0],
            NOT_PERMITTED,
        ),
        ("opening", libc::SYS_openat, [0; 6], NO_SUCH_CALL),
    ];
    for (name, call, arguments, expected) in cases {
        assert_eq!(verdict(call, arguments), expected, "{name}");
    }
}

#[test]
fn what_escapes_are_made_of_is_unknown() {
    let calls = [
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_sendmsg,
        libc::SYS_recvmsg,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_open,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_open_by_handle_at,
        libc::SYS_name_to_handle_at,
        libc::SYS_kexec_load,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_memfd_create,
        libc::SYS_memfd_secret,
        libc::SYS_shmget,
        libc::SYS_mq_open,
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_setresuid,
        libc::SYS_capset,
        libc::SYS_setsid,
        libc::SYS_seccomp,
        libc::SYS_flock,
        libc::SYS_personality,
        libc::SYS_openat2,
    ];
    for call in calls {
        for arguments in [[0; 6], [u64::MAX; 6], [1; 6]] {
            assert_eq!(verdict(call, arguments), NO_SUCH_CALL, "call {call}");
        }
    }
}
