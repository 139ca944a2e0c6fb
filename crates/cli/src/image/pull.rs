//! `sbx image pull`: brings an image in, shows how far that is, and tells what came and what was there.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
};

use exec_sandbox::{
    SchedulerConfig,
    assets::{self, Progress, Pulled, PulledBlob},
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{args::PullArgs, exit::Status, failure::Failure, interrupt::Interrupts, print};

/// Brings the image in.
pub(super) fn run(args: &PullArgs) -> Result<Status, Failure> {
    let mut config = SchedulerConfig::default();
    if args.from.is_some() {
        config.assets_url.clone_from(&args.from);
    }
    let name = args.name.clone().unwrap_or_else(|| config.image.clone());
    let bar = bar(&name, !args.quiet && io::stderr().is_terminal());
    let pulled = crate::block_on(pull(&config, &name, &bar));
    bar.finish_and_clear();
    let pulled = pulled?;
    if args.json {
        print::json(&pulled)?;
    } else {
        print::page(&page(&pulled))?;
    }
    Ok(Status::SUCCESS)
}

async fn pull(config: &SchedulerConfig, name: &str, bar: &ProgressBar) -> Result<Pulled, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let show = |progress: Progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
    };
    tokio::select! {
        pulled = assets::pull(config, name, show) => Ok(pulled?),
        // What has arrived stays for the next time.
        signal = interrupts.next() => Err(Failure::Interrupted(signal)),
    }
}

fn bar(name: &str, wanted: bool) -> ProgressBar {
    if !wanted {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::no_length().with_message(format!("fetching {name}"));
    let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

fn page(pulled: &Pulled) -> String {
    let width = pulled.blobs.iter().map(|blob| blob.role.len()).max().unwrap_or(0);
    let mut page = String::new();
    for blob in &pulled.blobs {
        let _ = writeln!(page, "{:width$}  {}", blob.role, what_came(blob));
    }
    let _ = writeln!(page, "Image {} from {} is in {}.", pulled.name, pulled.from, pulled.path.display());
    page
}

fn what_came(blob: &PulledBlob) -> String {
    let PulledBlob { size_bytes, fetched_bytes, .. } = blob;
    match fetched_bytes {
        None => format!("{size_bytes} bytes, there already"),
        Some(fetched) if fetched == size_bytes => format!("{size_bytes} bytes, fetched"),
        Some(fetched) => format!("{size_bytes} bytes, {fetched} of them fetched now"),
    }
}
