//! `sbx shell`: one session, block after block, typed by a person or read from a pipe.
//!
//! ```text
//! input ─▶ block ─▶ desk ─▶ session          `:upload` and the like are done by the desk too
//!   ▲                 │ over, lost, `:reset` ─▶ a new session
//!   └────── shown ◀───┘
//! ```

use std::io::{self, IsTerminal as _};

use exec_sandbox::Scheduler;

use self::{
    command::Command,
    desk::Desk,
    input::{Input, Read},
};
use crate::{
    args::ShellArgs, exit::Status, failure::Failure, files::Plan, interrupt::Interrupts, print, progress::Progress,
    scheduled::scheduled_until,
};

mod blocks;
mod command;
mod desk;
mod input;
mod scan;

/// Runs a shell until its input is over.
pub(crate) fn run(args: ShellArgs) -> Result<Status, Failure> {
    let by_hand = io::stdin().is_terminal() && io::stdout().is_terminal();
    let wants_progress = io::stderr().is_terminal() && !args.quiet;
    let plan = Plan::of(&args.upload)?;
    crate::block_on(async move {
        let progress = Progress::start("checking QEMU and the image", wants_progress);
        let (interrupts, keyboard) = if by_hand {
            (Interrupts::but_for_the_keyboard()?, Some(desk::keyboard()?))
        } else {
            (Interrupts::listen()?, None)
        };
        let config = args.config();
        scheduled_until(interrupts, config, &progress, wants_progress, async |scheduler: &Scheduler| {
            progress.end();
            let request = desk::request(&args);
            let mut desk =
                Desk { scheduler, args: &args, request, plan: &plan, wants_progress, keyboard, session: None };
            desk.start().await?;
            let status = serve(&mut desk, by_hand).await?;
            if let Some(session) = desk.session {
                session.close().await?;
            }
            Ok(status)
        })
        .await
    })
}

/// Does what is asked until the input is over. A script's exit code is that of its last failure.
async fn serve(desk: &mut Desk<'_>, by_hand: bool) -> Result<Status, Failure> {
    let language = desk.args.language();
    let mut input = if by_hand { Input::terminal(language) } else { Input::script(language) };
    if by_hand && !desk.args.quiet {
        print::note(&format!("{language} in a VM of its own; :help says what else there is, Ctrl-D ends it"));
    }
    let mut status = Status::SUCCESS;
    loop {
        let block = match input.next().await? {
            Read::Block(block) => block,
            Read::Nothing => continue,
            Read::End => break,
        };
        let done = match command::parse(&block) {
            None => desk.execute(&block).await,
            Some(Ok(Command::Quit)) => break,
            Some(command) => match command {
                Ok(command) => obey(desk, command).await.map(|()| Status::SUCCESS),
                Err(failure) => Err(failure),
            },
        };
        status = match done {
            Ok(Status::SUCCESS) => status,
            Ok(failed) => failed,
            // Nobody is left to be shown anything.
            Err(Failure::BrokenPipe) => return Err(Failure::BrokenPipe),
            Err(failure) => print::failure(&failure, false),
        };
    }
    Ok(if by_hand { Status::SUCCESS } else { status })
}

async fn obey(desk: &mut Desk<'_>, command: Command) -> Result<(), Failure> {
    match command {
        Command::Help => print::page(command::HELP),
        Command::Upload(spec) => desk.upload(&Plan::of(&[spec])?).await,
        Command::Download(spec) => desk.download(&spec).await,
        Command::List(path) => desk.list(&path).await,
        Command::Reset => desk.start().await,
        Command::Quit => Ok(()),
    }
}
