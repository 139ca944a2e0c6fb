//! `sbx bench idle`: what VMs take of the host that have nothing to do, with their host connected and without.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use exec_sandbox::{ExecRequest, Language, Process, QemuVm, Scheduler, VmSpec};
use serde::Serialize;

use super::{
    figures::{Figures, figures},
    hello, measured,
    page::mib,
    plot::{Bar, Panel, Plot},
    said_hello, show, title,
};
use crate::{args::IdleArgs, exit::Status, failure::Failure, print::HEADER, progress::Progress};

/// The kernel counts a process's time in hundredths of a second, so this is a sample of which one count is one per cent.
const SAMPLE: Duration = Duration::from_secs(1);

/// Before the first sample: an agent that has lost its host has found its longest wait by then.
const SETTLE: Duration = Duration::from_secs(2);

/// What was measured of all VMs in one state.
#[derive(Serialize)]
struct Sheet {
    /// `connected` or `orphaned`.
    state: &'static str,
    vms: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    vm_id: String,
    language: Language,
    /// Percent of a core in each second.
    cpu_percent: Vec<f64>,
    resident_bytes: u64,
}

/// Measures what was asked for.
pub(super) fn run(args: &IdleArgs) -> Result<Status, Failure> {
    measured(args.what.host.config(), async |scheduler: &Scheduler, progress: &Progress| {
        let vms = start(scheduler, args, progress).await?;
        let connected = sheet("connected", &vms, args, progress).await?;
        for vm in &vms {
            vm.channel().close().await?;
        }
        let orphaned = sheet("orphaned", &vms, args, progress).await?;
        progress.end();
        let sheets = [connected, orphaned];
        let title = title(scheduler, &format!("{} samples of 1 s", args.seconds));
        show(&args.what, &sheets, &page(&title, &sheets), &plot(title, &sheets))?;
        Ok(Status::SUCCESS)
    })
}

/// The languages in turn, each VM having run something.
async fn start(scheduler: &Scheduler, args: &IdleArgs, progress: &Progress) -> Result<Vec<QemuVm>, Failure> {
    let languages = args.what.languages();
    let mut vms = Vec::new();
    for (number, language) in (1..=args.number).zip(languages.into_iter().cycle()) {
        progress.say(&format!("starting VM {number}/{}", args.number));
        let vm = scheduler.manager().create_vm(VmSpec::new(language)).await?;
        said_hello(language, vm.execute(ExecRequest::new(hello(language))).await?)?;
        vms.push(vm);
    }
    Ok(vms)
}

async fn sheet(state: &'static str, vms: &[QemuVm], args: &IdleArgs, progress: &Progress) -> Result<Sheet, Failure> {
    let usage = |process: &Process| process.usage().map_err(|error| Failure::host("reading what QEMU uses", error));
    tokio::time::sleep(SETTLE).await;
    let mut rows = Vec::new();
    for vm in vms {
        let row = Row { vm_id: vm.vm_id().into(), language: vm.language(), cpu_percent: vec![], resident_bytes: 0 };
        rows.push((row, usage(vm.process())?.cpu, Instant::now()));
    }
    for second in 1..=args.seconds {
        progress.say(&format!("{state}: second {second}/{}", args.seconds));
        tokio::time::sleep(SAMPLE).await;
        for (vm, (row, cpu, at)) in vms.iter().zip(&mut rows) {
            let (used, now) = (usage(vm.process())?, Instant::now());
            row.cpu_percent.push(100.0 * (used.cpu - *cpu).as_secs_f64() / (now - *at).as_secs_f64());
            row.resident_bytes = used.resident_bytes;
            (*cpu, *at) = (used.cpu, now);
        }
    }
    Ok(Sheet { state, vms: rows.into_iter().map(|(row, ..)| row).collect() })
}

fn page(title: &str, sheets: &[Sheet]) -> String {
    let mut page = format!("{title}\n");
    for sheet in sheets {
        let state = format!("{} × {}", sheet.vms.len(), sheet.state);
        let _ = writeln!(page, "\n{HEADER}{state:<18} {:>11}  {:>11}  {:>9}{HEADER:#}", "median", "p95", "resident");
        for row in &sheet.vms {
            line(&mut page, row.language.name(), row.cpu_percent.clone(), row.resident_bytes);
        }
        let all = sheet.vms.iter().flat_map(|row| row.cpu_percent.iter().copied()).collect();
        line(&mut page, "all of them", all, sheet.vms.iter().map(|row| row.resident_bytes).sum());
    }
    page
}

fn line(page: &mut String, name: &str, cpu_percent: Vec<f64>, resident_bytes: u64) {
    let mean = mean(&cpu_percent);
    if let Some(Figures { median, p95 }) = figures(cpu_percent) {
        let mib = mib(resident_bytes);
        let _ = writeln!(page, "{name:<18} {median:>7.2} % {p95:>9.2} % {mib:>7} MiB   mean {mean:.2} %");
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / f64::from(u32::try_from(values.len()).unwrap_or(u32::MAX))
}

fn plot(title: String, sheets: &[Sheet]) -> Plot {
    let bar = |sheet: &Sheet, row: &Row, number: usize| {
        let label = format!("{} {}, {}", row.language, number + 1, sheet.state);
        Bar::plain(label, "cpu", mean(&row.cpu_percent), None)
    };
    let bars_of = |sheet: &Sheet| sheet.vms.iter().enumerate().map(|(at, row)| bar(sheet, row, at)).collect::<Vec<_>>();
    let bars = sheets.iter().flat_map(bars_of).collect();
    Plot { title, panels: vec![Panel { title: "mean per cent of a core".into(), bars }] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_line_for_each_vm_and_one_for_all() {
        let row = |cpu_percent: &[f64]| Row {
            vm_id: "vm-1".into(),
            language: Language::Raw,
            cpu_percent: cpu_percent.to_vec(),
            resident_bytes: 100 << 20,
        };
        let sheet = Sheet { state: "orphaned", vms: vec![row(&[0.0, 1.0, 0.0]), row(&[2.0, 0.0, 0.0])] };
        insta::assert_snapshot!(page("tcg", &[sheet]));
    }
}
