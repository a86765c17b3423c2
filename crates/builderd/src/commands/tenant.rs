//! `builderd tenant`: the records of tenants, looked at and changed beside a running service.

use builder_core::{
    admin::{AdminError, Change, Changed, Database},
    audit::{Actor, AuditEvent, rfc3339},
};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::{Value, json};
use tenant::{LimitOverrides, TenantId, TenantRecord, Tier, ledger::LedgerQuery};

mod limits;

use super::records::{failure, json_flag, open, tenant_argument, values, with_database};
use crate::{
    cli::output::{print, print_json, record, table},
    exit::{Exit, Failure},
};

/// Records that are read at a time.
const PAGE: usize = 1_000;

/// Events that `show` shows.
const EVENTS: usize = 20;

/// The command line of `tenant`.
pub(super) fn command() -> Command {
    let command = Command::new("tenant")
        .about("List tenants, and set their tiers and limits")
        .long_about(
            "List tenants, and set their tiers and limits, in the database of a service that runs or does not. A running \
             service takes a change up with the next build that it accepts or begins. Each change is noted in the database \
             together with who made it, and gets into the audit log when the service has one.",
        )
        .subcommand_required(true)
        .subcommand(
            Command::new("list")
                .about("List all tenants that have been seen")
                .arg(json_flag()),
        )
        .subcommand(
            Command::new("show")
                .about("Show a tenant's record, what it has used, and the latest changes")
                .arg(tenant_argument())
                .arg(json_flag()),
        )
        .subcommand(changing(
            Command::new("set-tier")
                .about("Give a tenant another tier, and with it the weight of that tier")
                .arg(tenant_argument())
                .arg(
                    Arg::new("tier")
                        .value_name("TIER")
                        .required(true)
                        .value_parser(|text: &str| text.parse::<Tier>().map_err(|error| error.to_string()))
                        .help("free, pro, enterprise or dedicated"),
                ),
        ))
        .subcommand(changing(limits::with_options(
            Command::new("set-limits")
                .about("Set limits of a tenant's own in place of those of its tier")
                .long_about(
                    "Set limits of a tenant's own in place of those of its tier. What is not named stays as it is; \
                     --reset gives a limit back to the tier. The machine's own size still cuts every figure.",
                )
                .arg(tenant_argument()),
        )));
    with_database(command)
}

/// Adds the options of every change.
fn changing(command: Command) -> Command {
    command
        .arg(
            Arg::new("reason")
                .long("reason")
                .value_name("TEXT")
                .help("Why, for the audit log"),
        )
        .arg(
            Arg::new("if-version")
                .long("if-version")
                .value_name("N")
                .value_parser(value_parser!(u64))
                .help("Change nothing when the record has another version than this"),
        )
        .arg(
            Arg::new("create")
                .long("create")
                .action(ArgAction::SetTrue)
                .help("Make the record of a tenant that was never seen"),
        )
        .arg(json_flag())
}

/// Runs the command.
pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("list", matches)) => list(matches),
        Some(("show", matches)) => show(matches),
        Some(("set-tier", matches)) => {
            let tier = matches.get_one::<Tier>("tier").copied();
            let tier = tier.ok_or_else(|| Failure::new(Exit::Usage, "a tier is needed"))?;
            change(matches, "tenant.set-tier", |_| vec![Change::Tier(tier)])
        }
        Some(("set-limits", matches)) => {
            let edit = limits::Edit::read(matches)?;
            change(matches, "tenant.set-limits", |record| edit.changes(record))
        }
        _ => Err(Failure::new(Exit::Usage, "see `builderd tenant --help`")),
    }
}

fn list(matches: &ArgMatches) -> Result<(), Failure> {
    let database = open(&values(matches)?)?;
    let mut records: Vec<TenantRecord> = Vec::new();
    loop {
        let after = records.last().map(|record| record.tenant_id.clone());
        let page = database
            .tenants(after.as_ref(), PAGE)
            .map_err(|error| failure(&error))?;
        let is_last = page.len() < PAGE;
        records.extend(page);
        if is_last {
            break;
        }
    }
    if matches.get_flag("json") {
        let tenants: Vec<Value> = records.iter().map(as_json).collect();
        return print_json(&Value::Array(tenants));
    }
    let rows: Vec<[String; 6]> = records
        .iter()
        .map(|record| {
            [
                record.tenant_id.to_string(),
                record.tier.to_string(),
                record.weight.to_string(),
                limits::described(&record.limits),
                rfc3339(record.created_at),
                record.version.to_string(),
            ]
        })
        .collect();
    print(&table(
        [
            "TENANT",
            "TIER",
            "WEIGHT",
            "LIMITS OF ITS OWN",
            "SEEN SINCE",
            "VERSION",
        ],
        &rows,
    ))
}

fn show(matches: &ArgMatches) -> Result<(), Failure> {
    let database = open(&values(matches)?)?;
    let id = named(matches)?;
    let fail = |error: AdminError| failure(&error);
    let found = database.tenant(id).map_err(fail)?;
    let found = found.ok_or_else(|| {
        Failure::new(
            Exit::NotFound,
            format!("there is no tenant {id}: it is made by its first build"),
        )
    })?;
    let query = LedgerQuery {
        tenant: Some(id.clone()),
        ..LedgerQuery::default()
    };
    let used = database.ledger_sums(&query).map_err(fail)?;
    let events = database.events(id, EVENTS).map_err(fail)?;
    if matches.get_flag("json") {
        let mut shown = as_json(&found);
        shown["used"] = json!({
            "builds": used.builds,
            "wall_seconds": used.wall.as_secs_f64(),
            "cpu_seconds": used.cpu.as_secs_f64(),
            "pulled_bytes": used.pulled_bytes,
            "stored_byte_seconds": used.stored_byte_seconds,
        });
        shown["events"] = serde_json::to_value(&events).map_err(|error| {
            Failure::new(Exit::Internal, format!("the events have no JSON form: {error}"))
        })?;
        return print_json(&shown);
    }
    let text = record(&[
        ("tenant", found.tenant_id.to_string()),
        ("tier", found.tier.to_string()),
        ("weight", found.weight.to_string()),
        ("limits of its own", limits::described(&found.limits)),
        ("seen since", rfc3339(found.created_at)),
        ("changed", found.changed_at.map(rfc3339).unwrap_or_default()),
        ("version", found.version.to_string()),
        ("builds billed", used.builds.to_string()),
        ("CPU time billed", format!("{} s", used.cpu.as_secs())),
    ]);
    print(&text)?;
    if events.is_empty() {
        return Ok(());
    }
    let rows: Vec<[String; 4]> = events
        .into_iter()
        .map(|event| {
            let who = event.actor.id.unwrap_or_default();
            let what = event.change.map(|change| change.to_string());
            [
                event.time,
                event.action,
                format!("{} {who}", event.actor.kind),
                what.or(event.reason).unwrap_or_default(),
            ]
        })
        .collect();
    print("")?;
    print(&table(["TIME", "EVENT", "BY", "WHAT"], &rows))
}

/// Changes a record as `changes` says of the present one.
fn change(
    matches: &ArgMatches,
    action: &str,
    changes: impl Fn(&TenantRecord) -> Vec<Change>,
) -> Result<(), Failure> {
    let values = values(matches)?;
    let mut database = open(&values)?;
    let id = named(matches)?;
    let fail = |error: AdminError| failure(&error);
    let mut present = match database.tenant(id).map_err(fail)? {
        Some(record) => record,
        None if matches.get_flag("create") => {
            database.make_tenant(id, values.default_tier()).map_err(fail)?
        }
        None => {
            return Err(failure(&AdminError::Record(tenant::RecordError::Unknown {
                tenant_id: id.clone(),
            })));
        }
    };
    if let Some(expected) = matches.get_one::<u64>("if-version")
        && *expected != present.version
    {
        return Err(failure(&AdminError::Record(tenant::RecordError::Changed {
            tenant_id: id.clone(),
            expected: *expected,
            found: present.version,
        })));
    }
    let reason = matches.get_one::<String>("reason");
    for change in changes(&present) {
        present = apply(&mut database, &present, &change, action, reason)?;
    }
    match matches.get_flag("json") {
        true => print_json(&as_json(&present)),
        false => print(&format!(
            "{} is of tier {} with weight {}; limits of its own: {} (version {})",
            present.tenant_id,
            present.tier,
            present.weight,
            limits::described(&present.limits),
            present.version
        )),
    }
}

fn apply(
    database: &mut Database,
    present: &TenantRecord,
    change: &Change,
    action: &str,
    reason: Option<&String>,
) -> Result<TenantRecord, Failure> {
    let tell = |changed: &Changed| {
        let mut event = AuditEvent::new(action, operator(), std::time::SystemTime::now())
            .of_tenant(changed.after.tenant_id.as_str());
        if let Some(reason) = reason {
            event = event.because(reason.clone());
        }
        event.change = Some(json!({ "from": figures(&changed.before), "to": figures(&changed.after) }));
        event
    };
    let changed = database
        .change(&present.tenant_id, change, present.version, tell)
        .map_err(|error| failure(&error))?;
    Ok(changed.after)
}

/// Who runs this command. Behind `sudo`, whoever runs that, by its word.
fn operator() -> Actor {
    Actor {
        kind: "cli".to_owned(),
        id: Some(format!("uid {}", super::own_user())),
        user: std::env::var("SUDO_UID").ok().map(|user| format!("uid {user}")),
        address: None,
    }
}

fn named(matches: &ArgMatches) -> Result<&TenantId, Failure> {
    matches
        .get_one::<TenantId>("tenant")
        .ok_or_else(|| Failure::new(Exit::Usage, "a tenant is needed"))
}

fn figures(record: &TenantRecord) -> Value {
    json!({ "tier": record.tier, "weight": record.weight, "limits": overrides(&record.limits) })
}

fn as_json(record: &TenantRecord) -> Value {
    json!({
        "tenant_id": record.tenant_id,
        "tier": record.tier,
        "weight": record.weight,
        "limits": overrides(&record.limits),
        "created_at": rfc3339(record.created_at),
        "changed_at": record.changed_at.map(rfc3339),
        "version": record.version,
    })
}

fn overrides(limits: &LimitOverrides) -> Value {
    // Plain data with string keys; it always has a form.
    serde_json::to_value(limits).unwrap_or_default()
}
