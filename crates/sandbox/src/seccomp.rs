//! Which system calls a program may make, as a filter for `seccomp(2)`.
//!
//! The filter is an allow-list. What is not on it fails with ENOSYS, as on a kernel that does not know the call: the C
//! library and the runtime then fall back, where EPERM would make them give up. Calls of another architecture than the
//! program's own (`int 0x80` on x86-64) end the process, and numbers of the x32 ABI fail with ENOSYS like any other.
//!
//! Source: `seccomp(2)`, `linux/filter.h`, `linux/seccomp.h`.

use serde::{Deserialize, Serialize};

mod calls;
#[cfg(test)]
mod tests;

/// A class of programs by what they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Calls {
    /// Computes on descriptors that it was given: reads and writes them, uses memory and threads. Opens nothing,
    /// starts nothing, knows no network.
    Worker,
}

/// One instruction of classic BPF (`struct sock_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) on_true: u8,
    pub(crate) on_false: u8,
    pub(crate) operand: u32,
}

/// A condition on one argument, of whose 64 bits each half is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// All bits of the mask are zero in the lower half.
    NoneOf { argument: u8, mask: u32 },
    /// All bits of the mask are set in the lower half.
    AllOf { argument: u8, mask: u32 },
    /// The lower half has this value.
    Is { argument: u8, value: u32 },
    /// The lower half has one of these values.
    OneOf { argument: u8, values: &'static [u32] },
    /// All 64 bits are zero.
    Zero { argument: u8 },
}

/// A call that is allowed, under all of these conditions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) number: u32,
    pub(crate) conditions: &'static [Condition],
    /// What it fails with when a condition does not hold.
    pub(crate) otherwise: u32,
}

/// The architecture of this program, as seccomp names it.
#[cfg(target_arch = "x86_64")]
pub(crate) const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
pub(crate) const ARCHITECTURE: u32 = 0xC000_00B7;

/// The first number of the x32 ABI, which shares the architecture of x86-64. No other architecture gets that far.
pub(crate) const X32: u32 = 0x4000_0000;

pub(crate) const RETURN_ALLOW: u32 = 0x7FFF_0000;
pub(crate) const RETURN_KILL_PROCESS: u32 = 0x8000_0000;
pub(crate) const RETURN_ERRNO: u32 = 0x0005_0000;

pub(crate) const LOAD: u16 = 0x20;
pub(crate) const JUMP_EQUAL: u16 = 0x15;
pub(crate) const JUMP_AT_LEAST: u16 = 0x35;
pub(crate) const JUMP_ANY_SET: u16 = 0x45;
pub(crate) const AND: u16 = 0x54;
pub(crate) const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`, little-endian.
pub(crate) const OFFSET_NUMBER: u32 = 0;
pub(crate) const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

/// The filter for a class of programs. `program` is the descriptor that the helper executes as its last act.
pub(crate) fn filter(calls: Calls, program: u32) -> Vec<Instruction> {
    let mut filter = vec![
        load(OFFSET_ARCHITECTURE),
        jump(JUMP_EQUAL, ARCHITECTURE, 1, 0),
        ret(RETURN_KILL_PROCESS),
        load(OFFSET_NUMBER),
        jump(JUMP_AT_LEAST, X32, 0, 1),
        ret(RETURN_ERRNO | errno(libc::ENOSYS)),
    ];
    // The last act of the helper: an empty path and this descriptor, which is closed by the execution.
    let flags = u32::try_from(libc::AT_EMPTY_PATH).unwrap_or(0);
    let execution = [
        Condition::Is {
            argument: 0,
            value: program,
        },
        Condition::Is {
            argument: 4,
            value: flags,
        },
    ];
    let execveat = number(libc::SYS_execveat);
    add(&mut filter, execveat, &execution, errno(libc::ENOSYS));
    let rules = match calls {
        Calls::Worker => calls::worker(),
    };
    for rule in rules {
        add(&mut filter, rule.number, rule.conditions, rule.otherwise);
    }
    filter.push(ret(RETURN_ERRNO | errno(libc::ENOSYS)));
    filter
}

/// The conditions of one call, and what it gives. Entered and left with the call's number loaded.
fn add(filter: &mut Vec<Instruction>, number: u32, conditions: &[Condition], otherwise: u32) {
    let mut body = Vec::new();
    // Every condition either goes on to the next, or falls into a return of the error.
    for condition in conditions {
        match *condition {
            Condition::NoneOf { argument, mask } => {
                body.extend([load(lower(argument)), jump(JUMP_ANY_SET, mask, 0, 1)]);
            }
            Condition::AllOf { argument, mask } => {
                let and = Instruction {
                    code: AND,
                    on_true: 0,
                    on_false: 0,
                    operand: mask,
                };
                body.extend([load(lower(argument)), and, jump(JUMP_EQUAL, mask, 1, 0)]);
            }
            Condition::Is { argument, value } => {
                body.extend([load(lower(argument)), jump(JUMP_EQUAL, value, 1, 0)]);
            }
            Condition::OneOf { argument, values } => {
                body.push(load(lower(argument)));
                for (index, value) in values.iter().enumerate() {
                    // Past the values that are left, and past the return.
                    let skip = u8::try_from(values.len() - index).unwrap_or(u8::MAX);
                    body.push(jump(JUMP_EQUAL, *value, skip, 0));
                }
            }
            Condition::Zero { argument } => {
                body.extend([
                    load(lower(argument) + 4),
                    jump(JUMP_EQUAL, 0, 1, 0),
                    ret(RETURN_ERRNO | otherwise),
                    load(lower(argument)),
                    jump(JUMP_EQUAL, 0, 1, 0),
                ]);
            }
        }
        body.push(ret(RETURN_ERRNO | otherwise));
    }
    body.push(ret(RETURN_ALLOW));
    let skip = u8::try_from(body.len()).unwrap_or(u8::MAX);
    filter.push(jump(JUMP_EQUAL, number, 0, skip));
    filter.extend(body);
}

/// The errno as it stands in a filter's answer.
pub(crate) const fn errno(errno: i32) -> u32 {
    errno.unsigned_abs()
}

/// A call's number as seccomp sees it.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers are small and positive; the kernel has 32 bits for them"
)]
pub(crate) const fn number(number: libc::c_long) -> u32 {
    number as u32
}

const fn lower(argument: u8) -> u32 {
    OFFSET_ARGUMENTS + 8 * argument as u32
}

const fn load(offset: u32) -> Instruction {
    Instruction {
        code: LOAD,
        on_true: 0,
        on_false: 0,
        operand: offset,
    }
}

const fn jump(code: u16, operand: u32, on_true: u8, on_false: u8) -> Instruction {
    Instruction {
        code,
        on_true,
        on_false,
        operand,
    }
}

const fn ret(answer: u32) -> Instruction {
    Instruction {
        code: RETURN,
        on_true: 0,
        on_false: 0,
        operand: answer,
    }
}
