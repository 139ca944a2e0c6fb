//! `sbx bench density`: what idle sessions take of the host's memory together, and what one more takes.

use std::{fmt::Write as _, time::Duration};

use exec_sandbox::{ExecRequest, Language, Scheduler, Session, SessionRequest};
use serde::Serialize;

use super::{
    figures::marginal,
    hello, measured,
    memory::{self, Share},
    plot::{Bar, Panel, Plot},
    rung, said_hello, show, title,
};
use crate::{args::DensityArgs, exit::Status, failure::Failure, print::HEADER, progress::Progress};

/// The rung that sessions stand on.
const RUNG: rung::Rung = rung::RESTORE;

/// After the last thing that a guest did: its own threads have gone to sleep by then.
const SETTLE: Duration = Duration::from_secs(1);

/// Sessions must outlive the measurement of all that come after them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// What a session has done before it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// Nothing: its agent has answered.
    Fresh,
    /// One hello.
    Used,
}

/// So many sessions at once.
#[derive(Serialize)]
struct Level {
    language: Language,
    state: State,
    sessions: u32,
    /// QEMU's processes: all of them together.
    pss_bytes: u64,
    uss_bytes: u64,
    /// What each took that was added since the level before, or since there was none.
    marginal_pss_bytes: Option<f64>,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Used => "used",
        }
    }
}

/// Measures what was asked for.
pub(super) fn run(args: &DensityArgs) -> Result<Status, Failure> {
    measured(RUNG.config(args.what.host.config()), async |scheduler: &Scheduler, progress: &Progress| {
        let mut levels = Vec::new();
        for language in args.what.languages() {
            progress.say(&format!("{language}: making what is measured"));
            RUNG.rehearse(scheduler, language).await?;
            for state in [State::Fresh, State::Used] {
                levels.extend(grow(scheduler, (language, state), &args.numbers(), progress).await?);
            }
        }
        progress.end();
        let title = title(scheduler, "idle sessions");
        show(&args.what, &levels, &page(&title, &levels), &plot(title, &levels))?;
        Ok(Status::SUCCESS)
    })
}

/// Adds sessions to those that are there until there are as many as each of `numbers` says.
async fn grow(
    scheduler: &Scheduler,
    (language, state): (Language, State),
    numbers: &[u32],
    progress: &Progress,
) -> Result<Vec<Level>, Failure> {
    let (mut sessions, mut levels) = (Vec::new(), Vec::new());
    let mut last = (0, 0.0);
    for &number in numbers {
        while sessions.len() < number as usize {
            progress.say(&format!("{language}, {}: session {}/{number}", state.name(), sessions.len() + 1));
            sessions.push(session(scheduler, language, state).await?);
        }
        tokio::time::sleep(SETTLE).await;
        let Share { proportional_bytes: pss_bytes, unique_bytes: uss_bytes } = together(&sessions)?;
        let now = (number, float(pss_bytes));
        let marginal_pss_bytes = marginal(last, now);
        levels.push(Level { language, state, sessions: number, pss_bytes, uss_bytes, marginal_pss_bytes });
        last = now;
    }
    for session in &sessions {
        session.close().await?;
    }
    Ok(levels)
}

async fn session(scheduler: &Scheduler, language: Language, state: State) -> Result<Session, Failure> {
    let request = SessionRequest { idle_timeout: Some(IDLE_TIMEOUT), ..SessionRequest::new(language) };
    let session = scheduler.session(request).await?;
    RUNG.check(language, session.vm().boot_timing().origin)?;
    if state == State::Used {
        said_hello(language, session.exec(ExecRequest::new(hello(language))).await?)?;
    }
    Ok(session)
}

fn together(sessions: &[Session]) -> Result<Share, Failure> {
    let mut sum = Share::default();
    for session in sessions {
        let share = memory::share_of(session.vm().process().pid())
            .map_err(|error| Failure::host("reading how much memory QEMU shares", error))?;
        sum.proportional_bytes += share.proportional_bytes;
        sum.unique_bytes += share.unique_bytes;
    }
    Ok(sum)
}

#[expect(clippy::cast_precision_loss, reason = "a byte more or less of a petabyte is nothing")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

impl Level {
    fn each_mib(&self, bytes: u64) -> f64 {
        mib(float(bytes)) / f64::from(self.sessions)
    }
}

fn page(title: &str, levels: &[Level]) -> String {
    let mut page = format!("{title} · MiB of QEMU's processes\n");
    let mut group = None;
    for level in levels {
        if group.replace((level.language, level.state)) != Some((level.language, level.state)) {
            let name = format!("{}, {}", level.language, level.state.name());
            let _ = writeln!(
                page,
                "\n{HEADER}{name:<18} {:>9} {:>9} {:>9} {:>9}{HEADER:#}",
                "PSS of all", "PSS each", "USS each", "one more"
            );
        }
        let _ = writeln!(
            page,
            "{:<18} {:>10.1} {:>9.1} {:>9.1} {:>9.1}",
            format!("{} at once", level.sessions),
            mib(float(level.pss_bytes)),
            level.each_mib(level.pss_bytes),
            level.each_mib(level.uss_bytes),
            mib(level.marginal_pss_bytes.unwrap_or_default()),
        );
    }
    page
}

fn plot(title: String, levels: &[Level]) -> Plot {
    let label = |level: &Level| format!("{}, {}, {} at once", level.language, level.state.name(), level.sessions);
    let each = |level: &Level| {
        let shared = level.pss_bytes.saturating_sub(level.uss_bytes);
        let parts = vec![("its own", level.each_mib(level.uss_bytes)), ("its share", level.each_mib(shared))];
        Bar { label: label(level), parts, reach: None }
    };
    let more = |level: &Level| Some(Bar::plain(label(level), "one more", mib(level.marginal_pss_bytes?), None));
    let panels = vec![
        Panel { title: "memory of each session, MiB".into(), bars: levels.iter().map(each).collect() },
        Panel { title: "what one more takes, MiB".into(), bars: levels.iter().filter_map(more).collect() },
    ];
    Plot { title, panels }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels() -> Vec<Level> {
        let level = |state, sessions, pss_mib: u64, uss_mib: u64, marginal_mib: f64| Level {
            language: Language::Python,
            state,
            sessions,
            pss_bytes: pss_mib << 20,
            uss_bytes: uss_mib << 20,
            marginal_pss_bytes: Some(marginal_mib * f64::from(1 << 20)),
        };
        vec![
            level(State::Fresh, 1, 25, 14, 25.0),
            level(State::Fresh, 4, 76, 50, 17.0),
            level(State::Used, 1, 42, 30, 42.0),
        ]
    }

    #[test]
    fn a_page_says_what_all_take_and_what_one_more_takes() {
        let shown = anstream::adapter::strip_str(&page("tcg", &levels())).to_string();
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn a_bar_is_what_a_session_has_alone_and_its_share_of_the_rest() {
        let plot = plot(String::new(), &levels());
        let [each, more] = &plot.panels[..] else { panic!("there are two panels") };
        assert_eq!(each.bars[1].parts, [("its own", 12.5), ("its share", 6.5)]);
        assert_eq!(more.bars[1].parts, [("one more", 17.0)]);
    }
}
