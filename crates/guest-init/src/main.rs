//! Process 1 of the microVM; see the library.

#![no_main]

/// The entry point, in place of std's.
///
/// Before it calls `fn main`, std opens `/dev/null` for each of the descriptors 0, 1 and 2 that is closed, and aborts
/// when it cannot. A kernel without a console leaves them closed, and without `/dev` there is no `/dev/null` yet: the
/// abort of process 1 would be a kernel panic.
#[expect(unsafe_code, reason = "the C library looks for this symbol")]
// SAFETY: no other item of this program has this name, and the type is the one that the C library calls.
#[unsafe(no_mangle)]
extern "C" fn main() -> std::ffi::c_int {
    guest_init::boot::main()
}
