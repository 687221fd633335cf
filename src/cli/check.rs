//! `tilework check`: every op on a device against the CPU, on the user's own machine.

use super::output::{Out, table};
use super::{CheckArgs, note};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{Case, ROOMS, Room, parity};

/// The worst of an op's cases.
struct Row {
    cases: usize,
    worst: parity::Difference,
    case: String,
}

pub(super) fn run(args: &CheckArgs, out: &mut Out) -> Result<()> {
    let (device, name) = args.machine.device()?;
    if device.name() == "cpu" {
        return Err(Error::config(
            "--device",
            "there is nothing to compare the CPU with",
            "use --device cuda on a machine with a GPU, or --device emulated",
        ));
    }
    let rooms = chosen(&args.ops)?;
    note(&format!("comparing with the CPU: {name}"));
    let mut rows = Vec::new();
    let mut bad = Vec::new();
    for room in rooms {
        // How far it came, should it be ended: under compute-sanitizer it may take long.
        note(&format!("checking {}", room.name));
        let row = check(room, &device, args.large)?;
        let ok = row.worst.error <= 1.0;
        if !ok {
            let d = &row.worst;
            bad.push(format!("{} {}: {}[{}] is {}, the CPU has {}", room.name, row.case, d.what, d.at, d.got, d.want));
        }
        rows.push(vec![
            room.name.to_string(),
            row.cases.to_string(),
            format!("{:.1}", row.worst.roundings),
            parity::tolerance(room.name, DType::F32).to_string(),
            if ok { "ok" } else { "DIFFERS" }.to_string(),
            row.case,
        ]);
    }
    out.print(
        table(&["op", "cases", "largest difference", "allowed", "", "in case"], "<>>><<", rows)
            .trim_start_matches('\n'),
    )?;
    if bad.is_empty() {
        return out.print("differences are in roundings of the size of the terms that were added\n");
    }
    Err(Error::Device {
        device: device.name().into(),
        problem: format!("it differs from the CPU:\n    {}", bad.join("\n    ")),
        remedy: "report this with the output of `tilework doctor`; until then train with --device cpu".into(),
    })
}

fn chosen(names: &[String]) -> Result<Vec<&'static Room>> {
    if names.is_empty() {
        return Ok(ROOMS.iter().collect());
    }
    let find = |name: &String| {
        let all = || ROOMS.iter().map(|r| r.name).collect::<Vec<_>>().join(", ");
        ROOMS.iter().find(|r| r.name == name).ok_or_else(|| {
            Error::config(format!("op `{name}`"), "there is no op of that name", format!("the ops are {}", all()))
        })
    };
    names.iter().map(find).collect()
}

fn check(room: &Room, device: &Device, large: bool) -> Result<Row> {
    let cases: Vec<Case> = (room.cases)().into_iter().filter(|c| large || !c.bench).collect();
    let mut row = Row { cases: cases.len(), worst: parity::Difference::default(), case: String::new() };
    for case in &cases {
        let worst =
            parity::Expected::of(room, case, DType::F32, 1)?.compare(&parity::run(case, device, DType::F32, 1)?)?;
        if worst.error > row.worst.error || row.case.is_empty() {
            row.worst = worst;
            row.case = case.name.clone();
        }
    }
    Ok(row)
}
