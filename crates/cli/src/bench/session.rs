//! `sbx bench session`: what an execution costs in a VM that is there, and how fast files go in and out.

use std::{fmt::Write as _, time::Instant};

use exec_sandbox::{ExecRequest, Exit, Language, Scheduler, Session, SessionRequest, WriteOptions};
use serde::Serialize;

use super::{
    figures::{Figures, figures},
    measured,
    plot::{Bar, Panel, Plot},
    show, title,
};
use crate::{args::SessionBenchArgs, exit::Status, failure::Failure, json::ms, print::HEADER, progress::Progress};

/// Executions before the first that counts.
const WARM_UP: u32 = 5;

/// Memory of the VM that files are sent to, in MiB: four tenths of it are the home directory.
const FILES_MEMORY_MIB: u32 = 512;

const MIB: usize = 1 << 20;

#[derive(Serialize)]
struct Sheet {
    executions: Vec<Executions>,
    files: Vec<Transfer>,
}

/// Round trips of an execution that does nothing.
#[derive(Serialize)]
struct Executions {
    language: Language,
    samples_ms: Vec<f64>,
}

#[derive(Serialize)]
struct Transfer {
    /// `write` or `read`.
    way: &'static str,
    /// `zeros` or `random`.
    content: &'static str,
    mib: u32,
    seconds: f64,
}

/// Measures what was asked for.
pub(super) fn run(args: &SessionBenchArgs) -> Result<Status, Failure> {
    measured(args.what.host.config(), async |scheduler: &Scheduler, progress: &Progress| {
        let mut executions = Vec::new();
        for language in args.what.languages() {
            progress.say(&format!("{} executions in {language}", args.number));
            executions.push(measure(scheduler, language, args.number).await?);
        }
        let files = files(scheduler, args.mib, progress).await?;
        progress.end();
        let (title, sheet) = (title(scheduler, "one session"), Sheet { executions, files });
        show(&args.what, &sheet, &page(&title, &sheet), &plot(title, &sheet))?;
        Ok(Status::SUCCESS)
    })
}

async fn measure(scheduler: &Scheduler, language: Language, number: u32) -> Result<Executions, Failure> {
    let session = scheduler.session(SessionRequest::new(language)).await?;
    let mut samples_ms = Vec::new();
    for count in 0..WARM_UP + number {
        let asked = Instant::now();
        let outcome = session.exec(ExecRequest::new(nothing(language))).await?;
        if outcome.exit != Exit::Code(0) {
            return Err(Failure::Bench(format!("doing nothing in {language} ended with {:?}", outcome.exit)));
        }
        if count >= WARM_UP {
            samples_ms.push(ms(asked.elapsed()));
        }
    }
    session.close().await?;
    Ok(Executions { language, samples_ms })
}

/// The shortest program.
fn nothing(language: Language) -> &'static str {
    match language {
        Language::Python => "pass",
        Language::JavaScript => ";",
        Language::Raw => ":",
    }
}

async fn files(scheduler: &Scheduler, mib: u32, progress: &Progress) -> Result<Vec<Transfer>, Failure> {
    let mut request = SessionRequest::new(Language::Raw);
    request.vm.memory_mib = Some(FILES_MEMORY_MIB);
    let session = scheduler.session(request).await?;
    let mut transfers = Vec::new();
    for (content, bytes) in [("zeros", vec![0; MIB]), ("random", noise(MIB))] {
        progress.say(&format!("{mib} MiB of {content}"));
        let content_of_all = bytes.repeat(mib as usize);
        let asked = Instant::now();
        session.write_file("file", &content_of_all[..], WriteOptions::default()).await?;
        transfers.push(Transfer { way: "write", content, mib, seconds: asked.elapsed().as_secs_f64() });
        let mut back = Vec::with_capacity(content_of_all.len());
        let asked = Instant::now();
        session.read_file("file", &mut back).await?;
        transfers.push(Transfer { way: "read", content, mib, seconds: asked.elapsed().as_secs_f64() });
        if back != content_of_all {
            return Err(Failure::Bench(format!("{mib} MiB of {content} came back changed")));
        }
        remove(&session).await?;
    }
    session.close().await?;
    Ok(transfers)
}

async fn remove(session: &Session) -> Result<(), Failure> {
    Ok(session.remove_file("file", false).await?)
}

/// Bytes without a pattern, the same every time.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some(state.to_le_bytes())
    };
    std::iter::from_fn(next).flatten().take(bytes).collect()
}

fn page(title: &str, sheet: &Sheet) -> String {
    let mut page = format!("{title}\n\n{HEADER}{:<18} {:>9}    {:>9}{HEADER:#}\n", "an execution", "median", "p95");
    for executions in &sheet.executions {
        if let Some(Figures { median, p95 }) = figures(executions.samples_ms.clone()) {
            let _ = writeln!(page, "{:<18} {median:>9.2} ms {p95:>9.2} ms", executions.language.name());
        }
    }
    let _ = writeln!(page, "\n{HEADER}{:<18} {:>9}{HEADER:#}", "a file", "MiB/s");
    for Transfer { way, content, mib, seconds } in &sheet.files {
        let _ = writeln!(page, "{:<18} {:>9.0}", format!("{way}, {content}"), f64::from(*mib) / seconds);
    }
    page
}

fn plot(title: String, sheet: &Sheet) -> Plot {
    let execution = |it: &Executions| {
        let Figures { median, p95 } = figures(it.samples_ms.clone())?;
        Some(Bar::plain(it.language.name(), "execution", median, Some(p95)))
    };
    let transfer =
        |it: &Transfer| Bar::plain(format!("{}, {}", it.way, it.content), "file", f64::from(it.mib) / it.seconds, None);
    let panels = vec![
        Panel {
            title: "an execution, ms: median and 95th percentile".into(),
            bars: sheet.executions.iter().filter_map(execution).collect(),
        },
        Panel { title: "a file, MiB/s".into(), bars: sheet.files.iter().map(transfer).collect() },
    ];
    Plot { title, panels }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_no_pattern_and_is_the_same_every_time() {
        let (one, other) = (noise(1000), noise(1000));
        assert_eq!(one, other);
        let zeros: u32 = one.iter().map(|byte| byte.count_zeros()).sum();
        assert!((3500..4500).contains(&zeros), "{zeros} of 8000 bits");
    }
}
