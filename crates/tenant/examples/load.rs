//! How fast builds are accepted and started, with 10,000 of 1,000 tenants in the queue.
//!
//! Every step is one transaction that reaches the disk (WAL, `synchronous=FULL`), as in the service. Run on the file system
//! whose speed is in question:
//!
//! ```text
//! cargo run --release -p tenant --example load -- [DIRECTORY]
//! ```

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::{
    env,
    error::Error,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use rusqlite::{Connection, TransactionBehavior};
use tenant::{
    Admission, Application, NodeCapacity, RequestedLimits, TenantDefaults, TenantId, Tier, TierTable,
    account::{self, End, Used},
    ledger::Outcome,
    queue::{self, Next},
    records,
};

const TENANTS: usize = 1_000;
const BUILDS: usize = 10_000;
const STARTS: usize = 1_000;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = env::args_os().nth(1).map_or_else(env::temp_dir, PathBuf::from);
    let path = directory.join(format!("tenant-load-{}.db", std::process::id()));
    let result = measure(&path);
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        let _ = std::fs::remove_file(name);
    }
    result
}

fn measure(path: &std::path::Path) -> Result<(), Box<dyn Error>> {
    let mut connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    for migration in tenant::migrations() {
        connection.execute_batch(migration)?;
    }
    let table = TierTable::new(Tier::Pro, &TenantDefaults::default());
    let node = NodeCapacity::builds(5);
    let requested = RequestedLimits::default();
    let tenants: Vec<TenantId> = (0..TENANTS)
        .map(|number| format!("tenant-{number}").parse())
        .collect::<Result<_, _>>()?;

    let begun = Instant::now();
    let mut admissions = Vec::with_capacity(BUILDS);
    for (number, tenant_id) in (0..BUILDS).zip(tenants.iter().cycle()) {
        let step = Instant::now();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let now = SystemTime::now();
        let record = records::get_or_create(&transaction, tenant_id, table.default_tier(), now)?;
        let application = Application {
            build_id: &format!("build-{number}"),
            tenant_id,
            customer_id: "",
            requested: &requested,
            limits: &table.limits_of(&record),
            key: None,
        };
        let admission = tenant::admit(&transaction, &application, &node, now)?;
        if admission != Admission::Accepted {
            return Err(format!("{admission:?}").into());
        }
        transaction.commit()?;
        admissions.push(step.elapsed());
    }
    let elapsed = begun.elapsed();
    println!(
        "admissions: {:.0} a second ({BUILDS} builds of {TENANTS} tenants in {:.2} s)",
        f64::from(u32::try_from(BUILDS)?) / elapsed.as_secs_f64(),
        elapsed.as_secs_f64()
    );
    tell("one admission", admissions);

    let mut starts = Vec::with_capacity(STARTS);
    let mut ends = Vec::with_capacity(STARTS);
    for _ in 0..STARTS {
        let step = Instant::now();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let next = queue::start_next(&transaction, &table, &node, SystemTime::now())?;
        transaction.commit()?;
        starts.push(step.elapsed());
        let Next::Start(start) = next else {
            return Err("nothing could be started".into());
        };
        let step = Instant::now();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let end = End {
            outcome: Outcome::Failed,
            refund: false,
            used: Used::default(),
            stored_bytes: 0,
        };
        account::end(&transaction, &start.build_id, &end, SystemTime::now())?;
        transaction.commit()?;
        ends.push(step.elapsed());
    }
    tell("one start, 10,000 to 9,001 waiting", starts);
    tell("one end", ends);
    let mut orders = Vec::new();
    for _ in 0..20 {
        let step = Instant::now();
        let order = queue::order(&connection)?;
        assert_eq!(order.waiting.len(), BUILDS - STARTS);
        orders.push(step.elapsed());
    }
    tell("the order of all that wait", orders);
    Ok(())
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1_000.0;
    println!(
        "{what}: median {:.3} ms, 99 of 100 below {:.3} ms, longest {:.3} ms",
        at(50),
        at(99),
        at(100)
    );
}
