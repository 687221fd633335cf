//! `tilework check`: every op on a device against the CPU, on the user's own machine.

use super::output::{Out, table};
use super::{CheckArgs, note};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::parity::{self, Terms};
use crate::ops::{Case, ROOMS, Room};

/// The worst of an op's cases.
struct Row {
    cases: usize,
    worst: parity::Difference,
    case: String,
}

/// What kernels store activations in.
const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

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
        let cases: Vec<Case> = (room.cases)().into_iter().filter(|c| args.large || !c.bench).collect();
        let terms: Vec<Terms<'_>> = cases.iter().map(|c| Terms::of(room, c, 1)).collect::<Result<_>>()?;
        for dtype in TYPES.into_iter().filter(|dtype| device.computes_in(*dtype)) {
            // How far it came, should it be ended: under compute-sanitizer it may take long.
            note(&format!("checking {} {dtype}", room.name));
            let row = check(&terms, dtype, &device)?;
            let ok = row.worst.error <= 1.0;
            if !ok {
                let d = &row.worst;
                let place = format!("{} {dtype} {}: {}[{}]", room.name, row.case, d.what, d.at);
                bad.push(format!("{place} is {}, the CPU has {}", d.got, d.want));
            }
            rows.push(vec![
                room.name.to_string(),
                dtype.to_string(),
                row.cases.to_string(),
                format!("{:.1}", row.worst.roundings),
                row.worst.allowed.to_string(),
                if ok { "ok" } else { "DIFFERS" }.to_string(),
                row.case,
            ]);
        }
    }
    out.print(
        table(&["op", "type", "cases", "largest difference", "allowed", "", "in case"], "<<>>><<", rows)
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

fn check(terms: &[Terms<'_>], dtype: DType, device: &Device) -> Result<Row> {
    let mut row = Row { cases: 0, worst: parity::Difference::default(), case: String::new() };
    for terms in terms.iter().filter(|t| t.case.half || dtype == DType::F32) {
        let worst = terms.check(device, dtype)?;
        if worst.error > row.worst.error || row.case.is_empty() {
            row.worst = worst;
            row.case = terms.case.name.clone();
        }
        row.cases += 1;
    }
    Ok(row)
}
