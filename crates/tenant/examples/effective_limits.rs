//! Shows what a build of some tier gets when it asks for some memory.
//!
//! ```text
//! cargo run -p tenant --example effective_limits -- pro 8589934592
//! ```

use std::{env, error::Error};

use tenant::{NodeCaps, RequestedLimits, Tier, TierTable};

#[expect(clippy::print_stdout, reason = "a program's output")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let tier: Tier = arguments.next().as_deref().unwrap_or("free").parse()?;
    let memory_bytes = arguments.next().map(|text| text.parse()).transpose()?;

    let caps = NodeCaps {
        concurrent_builds: Some(5),
        ..NodeCaps::default()
    };
    let (table, cuts) = TierTable::default().capped(&caps);
    for cut in cuts {
        println!("cut by the node: {cut}");
    }
    let requested = RequestedLimits {
        memory_bytes,
        ..RequestedLimits::default()
    };
    let lowered = table.limits(tier).lowered_by(&requested);
    for cut in &lowered.cuts {
        println!("cut by the tier: {cut}");
    }
    println!("{:#?}", lowered.limits);
    Ok(())
}
