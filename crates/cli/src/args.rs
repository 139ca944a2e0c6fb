//! The command line as it is typed: commands, options, help.
//!
//! Values are checked for their form only; what is in range is for the library to say.

mod bench;
mod cache;
mod image;
mod network;
mod packages;
mod service;

use std::{
    ffi::{OsStr, OsString},
    io::{self, IsTerminal as _},
    time::Duration,
};

use clap::{
    ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use exec_sandbox::{AccelRequest, Language, RunRequest, SchedulerConfig};

pub(crate) use bench::{
    BenchArgs, BenchCommand, ConcurrencyArgs, DensityArgs, IdleArgs, MeasuredArgs, RunsArgs, SessionBenchArgs,
};
pub(crate) use cache::{CacheArgs, CacheCommand, CacheGcArgs, KeysArgs};
pub(crate) use image::{ImageArgs, ImageCommand, PullArgs};
use network::NetworkArgs;
use packages::PackageArgs;
use service::{DOWN_NOTES, UP_NOTES};
pub(crate) use service::{DownArgs, UpArgs};

use crate::{
    exit::Status,
    failure::Failure,
    files::{DownloadSpec, UploadSpec},
    print,
    source::DEFAULT_LANGUAGE,
};

const RUN_NOTES: &str = "\
A SOURCE is `-` (standard input), a file that exists, or else code. Without any, code is read from standard input. Several \
sources run at the same time, each in a VM of its own; their outputs follow each other in the order given.

GUEST is relative to the home directory, /home/user. Without it, or after `LOCAL:`, a file keeps its name; a name that ends \
with `/` is a directory to put it into. The last colon separates.

Packages are installed in a VM in which nothing else runs, kept (`sbx cache`), and there at once the next time.

Exit code: the program's own; 128+n when signal n ended it; 2 wrong usage; 124 the program's or the boot's time was up; \
125 the sandbox or a download failed; 130 interrupted. Of several sources the first that did not succeed decides.";

const SHELL_NOTES: &str = "\
On a terminal a block is executed when it is whole; one of Python that can go on ends with an empty line. Ctrl-C interrupts a \
program, once more ends it; Ctrl-D ends the shell; `:help` says what else there is. From a pipe blocks are executed in order, \
without a prompt.

Exit code: 0 on a terminal; else that of the last block that failed, or 0; 2 wrong usage; 125 the sandbox failed.";

const KILL_NOTES: &str = "\
The processes of a VM are killed and confirmed dead, and nothing of it is left. Who ran a program in it is told that it may \
have run. The ids of the VMs that are gone are printed.

Exit code: 0 done; 2 wrong usage or an id that stands for no VM; 125 a VM whose end cannot be confirmed.";

const GC_NOTES: &str = "\
The start of any sandbox does the same. VMs in use are left alone. What is kept for the next run is another matter: `sbx cache gc`.

Exit code: 0 done; 125 something resists.";

/// Runs untrusted code in microVMs.
///
/// `sbx 'print(1)'` is short for `sbx run 'print(1)'`.
#[derive(Debug, Parser)]
#[command(
    name = "sbx",
    version,
    max_term_width = 100,
    override_usage = "sbx <COMMAND>\n       sbx [OPTIONS] [SOURCE]..."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run code, each source in a fresh VM
    #[command(after_help = RUN_NOTES)]
    Run(RunArgs),
    /// Run code block by block in one VM that keeps what it holds
    #[command(after_help = SHELL_NOTES)]
    Shell(ShellArgs),
    /// Keep VMs ready in the background for `sbx run`
    #[command(after_help = UP_NOTES)]
    Up(UpArgs),
    /// End what `sbx up` has started
    #[command(after_help = DOWN_NOTES)]
    Down(DownArgs),
    /// List the VMs on this host, whoever started them
    Ps(PsArgs),
    /// End VMs
    #[command(after_help = KILL_NOTES)]
    Kill(KillArgs),
    /// Clear up the VMs that processes which are gone have left
    #[command(after_help = GC_NOTES)]
    Gc(GcArgs),
    /// Say what is wrong with this host and how to mend it
    Doctor(DoctorArgs),
    /// Snapshots and packages that are kept for the next run
    Cache(CacheArgs),
    /// Images that VMs boot
    Image(ImageArgs),
    /// Measure this host
    Bench(BenchArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

/// How VMs are started, whatever runs in them.
#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    /// How the guest's processor is run [default: the best that works]
    #[arg(long, value_name = "NAME", value_parser = parsed::<AccelRequest>(&[("auto", &[]), ("kvm", &[]), ("hvf", &[]), ("tcg", &[])]))]
    accel: Option<AccelRequest>,
    /// The image to boot [default: standard]
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Standard input (`-`), files, or code
    #[arg(value_name = "SOURCE")]
    sources: Vec<OsString>,
    /// Code, whatever it looks like; may be repeated
    #[arg(short, long, value_name = "CODE")]
    code: Vec<String>,
    /// Language of every source [default: by a file's extension or `#!` line, else python]
    #[arg(short, long, value_name = "NAME", value_parser = language())]
    pub(crate) language: Option<Language>,
    /// Seconds that each program may run, 1 to 300 [default: 30]
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Memory of each VM in MiB, at least 128 [default: 192]
    #[arg(short, long, value_name = "MIB")]
    memory: Option<u32>,
    /// An environment variable of the programs; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Install a package: name==version in python, name@version in javascript; may be repeated
    #[arg(short, long, value_name = "PACKAGE")]
    package: Vec<String>,
    #[command(flatten)]
    packages: PackageArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    /// Put a file or directory into each VM before its program runs; may be repeated
    #[arg(long, value_name = "LOCAL[:GUEST]", value_parser = UploadSpec::parse)]
    pub(crate) upload: Vec<UploadSpec>,
    /// Fetch a file or directory after the program, even if it failed; may be repeated
    #[arg(long, value_name = "GUEST[:LOCAL]", value_parser = DownloadSpec::parse)]
    pub(crate) download: Vec<DownloadSpec>,
    /// Print one JSON object (an array for several sources) at the end
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress and no notes
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Say on standard error at which ports of the host each VM is reached, and what its network refused
    #[arg(short, long, conflicts_with = "quiet")]
    pub(crate) verbose: bool,
    /// Show the guest's boot log on standard error; booting takes longer
    #[arg(long)]
    pub(crate) debug: bool,
    /// Do without the service that `sbx up` has started
    #[arg(long)]
    pub(crate) no_service: bool,
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// Sources and `-c` in the order in which they were typed.
    #[arg(skip)]
    pub(crate) typed: Vec<Typed>,
}

#[derive(Debug, Args)]
pub(crate) struct ShellArgs {
    /// Language of the session [default: python]
    #[arg(short, long, value_name = "NAME", value_parser = language())]
    language: Option<Language>,
    /// Seconds that each block may run, 1 to 300 [default: 30]
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
    /// Seconds without anything to do after which the VM ends, 10 to 3600 [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) idle_timeout: Option<Duration>,
    /// Memory of the VM in MiB, at least 128 [default: 192]
    #[arg(short, long, value_name = "MIB")]
    pub(crate) memory: Option<u32>,
    /// An environment variable of every block; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Install a package: name==version in python, name@version in javascript; may be repeated
    #[arg(short, long, value_name = "PACKAGE")]
    pub(crate) package: Vec<String>,
    #[command(flatten)]
    packages: PackageArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    /// Put a file or directory into the VM first; may be repeated
    #[arg(long, value_name = "LOCAL[:GUEST]", value_parser = UploadSpec::parse)]
    pub(crate) upload: Vec<UploadSpec>,
    /// No progress and no notes
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Say on standard error at which ports of the host the VM is reached, and what its network refused
    #[arg(short, long, conflicts_with = "quiet")]
    pub(crate) verbose: bool,
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

/// A source as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// `-`, a file or code.
    Word(OsString),
    /// Code for certain.
    Code(String),
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Print ids only
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// VMs, by their ids or by what only one id begins with
    #[arg(value_name = "ID", required_unless_present = "all")]
    pub(crate) ids: Vec<String>,
    /// End every VM
    #[arg(long, conflicts_with = "ids")]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Try from inside a VM of each language what a program must not be able to do
    #[arg(long)]
    pub(crate) guest: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    packages: PackageArgs,
    #[command(flatten)]
    host: HostArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell to complete in
    pub(crate) shell: clap_complete::Shell,
}

impl Cli {
    /// Reads the process's arguments, the program's name first.
    pub(crate) fn read(words: Vec<OsString>) -> Result<Self, Failure> {
        if words.len() < 2 && io::stdin().is_terminal() {
            return Err(help(&["sbx", "--help"]));
        }
        let cli = Self::of(words).map_err(Failure::Clap)?;
        match &cli.command {
            Command::Run(run) if run.typed.is_empty() && io::stdin().is_terminal() => {
                Err(help(&["sbx", "run", "--help"]))
            }
            _ => Ok(cli),
        }
    }

    fn of(words: Vec<OsString>) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(with_command(words))?;
        let mut cli = Self::from_arg_matches(&matches)?;
        if let (Command::Run(run), Some(matches)) = (&mut cli.command, matches.subcommand_matches("run")) {
            run.typed = in_order(matches);
        }
        Ok(cli)
    }
}

impl HostArgs {
    /// The library's configuration with what was typed put over it.
    pub(crate) fn config(&self) -> SchedulerConfig {
        let mut config = SchedulerConfig::default();
        if let Some(accel) = self.accel {
            config.accel = accel;
        }
        if let Some(image) = &self.image {
            config.image.clone_from(image);
        }
        config
    }
}

impl DoctorArgs {
    /// The configuration that is examined.
    pub(crate) fn config(&self) -> SchedulerConfig {
        self.packages.over(self.host.config())
    }
}

impl ShellArgs {
    /// The configuration of its scheduler.
    pub(crate) fn config(&self) -> SchedulerConfig {
        self.packages.over(self.network.over(self.host.config()))
    }

    pub(crate) fn language(&self) -> Language {
        self.language.unwrap_or(DEFAULT_LANGUAGE)
    }
}

impl RunArgs {
    /// The configuration of its scheduler, its own or a service's.
    pub(crate) fn config(&self) -> SchedulerConfig {
        self.packages.over(self.network.over(self.host.config()))
    }

    /// The request for one source.
    pub(crate) fn request(&self, language: Language, code: &str) -> RunRequest {
        let mut request = RunRequest::new(language, code);
        request.timeout = self.timeout;
        request.memory_mib = self.memory;
        request.env.clone_from(&self.env);
        request.packages.clone_from(&self.package);
        request.network = self.network.policy();
        request.expose.clone_from(&self.network.expose);
        request.boot_log = self.debug;
        request
    }
}

/// Whether JSON was asked for, also by a command line that is otherwise wrong.
pub(crate) fn wants_json(words: &[OsString]) -> bool {
    words.iter().take_while(|word| *word != "--").any(|word| word == "--json")
}

/// Prints the completion script of `shell`.
pub(crate) fn completions(shell: clap_complete::Shell) -> Result<Status, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sbx", &mut script);
    print::to_stdout(&script)?;
    Ok(Status::SUCCESS)
}

/// `words` with `run` put in where the first of them is no command.
fn with_command(mut words: Vec<OsString>) -> Vec<OsString> {
    let is_known = |word: &OsStr| {
        ["help", "-h", "--help", "-V", "--version"].iter().any(|known| word == *known)
            || Cli::command().get_subcommands().any(|command| word == command.get_name())
    };
    if !words.get(1).is_some_and(|word| is_known(word)) {
        words.insert(words.len().min(1), "run".into());
    }
    words
}

fn in_order(matches: &ArgMatches) -> Vec<Typed> {
    let words = matches.get_many::<OsString>("sources").into_iter().flatten().cloned().map(Typed::Word);
    let codes = matches.get_many::<String>("code").into_iter().flatten().cloned().map(Typed::Code);
    let places = |name| matches.indices_of(name).into_iter().flatten();
    let mut typed: Vec<(usize, Typed)> = places("sources").zip(words).chain(places("code").zip(codes)).collect();
    typed.sort_by_key(|(place, _)| *place);
    typed.into_iter().map(|(_, typed)| typed).collect()
}

/// The help that `words` ask for, as clap hands it out: as an error that is printed to standard output.
fn help(words: &[&str]) -> Failure {
    match Cli::command().try_get_matches_from(words) {
        Err(help) => Failure::Clap(help),
        Ok(_) => Failure::Usage { message: "there is nothing to do".into(), help: None },
    }
}

/// Values with fixed names and other names for them, all of which `T` reads from the first.
fn parsed<T>(names: &[(&'static str, &'static [&'static str])]) -> impl TypedValueParser<Value = T> + use<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static> + Clone + Send + Sync + 'static,
{
    let values = names.iter().map(|(name, aliases)| PossibleValue::new(*name).aliases(aliases.iter().copied()));
    let names: Vec<(&str, &[&str])> = names.to_vec();
    PossibleValuesParser::new(values).try_map(move |typed| {
        let name =
            names.iter().find(|(_, aliases)| aliases.contains(&typed.as_str())).map_or(typed.as_str(), |it| it.0);
        name.parse::<T>()
    })
}

fn language() -> impl TypedValueParser<Value = Language> {
    parsed(&[("python", &["py"]), ("javascript", &["js", "typescript", "ts"]), ("raw", &["bash", "sh"])])
}

fn seconds(typed: &str) -> Result<Duration, String> {
    let seconds: f64 = typed.parse().map_err(|_| "it is not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "it is not a length of time".to_owned())
}

fn variable(typed: &str) -> Result<(String, String), String> {
    let (name, value) = typed.split_once('=').ok_or_else(|| "it lacks `=`: write NAME=VALUE".to_owned())?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use exec_sandbox::{NetworkPolicy, PortMapping, Protocol};

    use super::*;

    fn read(words: &[&str]) -> Cli {
        Cli::of(words.iter().map(OsString::from).collect()).expect("it is a command line")
    }

    fn run(words: &[&str]) -> RunArgs {
        match read(words).command {
            Command::Run(run) => run,
            other => panic!("{other:?} is not a run"),
        }
    }

    fn word(text: &str) -> Typed {
        Typed::Word(text.into())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_first_word_that_is_no_command_is_run() {
        assert_eq!(run(&["sbx", "print(1)"]).typed, [word("print(1)")]);
        assert_eq!(run(&["sbx", "-c", "doctor"]).typed, [Typed::Code("doctor".into())]);
        assert_eq!(run(&["sbx", "-"]).typed, [word("-")]);
        assert_eq!(run(&["sbx"]).typed, []);
        assert!(matches!(read(&["sbx", "doctor"]).command, Command::Doctor(_)));
    }

    #[test]
    fn sources_and_code_keep_the_order_in_which_they_were_typed() {
        let typed = run(&["sbx", "run", "-c", "1", "a.py", "b.py", "--code=2", "c.py"]).typed;
        assert_eq!(typed, [Typed::Code("1".into()), word("a.py"), word("b.py"), Typed::Code("2".into()), word("c.py")]);
    }

    #[test]
    fn every_option_reaches_the_request() {
        let args = run(&["sbx", "-l", "ts", "-t", "2.5", "-m", "256", "-e", "A=b=c", "-e", "D=", "--debug", "1"]);
        let request = args.request(args.language.expect("it was given"), "1");
        assert_eq!(request.language, Language::JavaScript);
        assert_eq!(request.timeout, Some(Duration::from_millis(2500)));
        assert_eq!(request.memory_mib, Some(256));
        assert_eq!(request.env, [("A".to_owned(), "b=c".to_owned()), ("D".to_owned(), String::new())]);
        assert!(request.boot_log);
    }

    #[test]
    fn packages_network_and_ports_reach_the_request() {
        let request = |words: &[&str]| run(words).request(Language::Python, "1");
        let asked = request(&["sbx", "-p", "a==1", "--package", "b==2", "--expose", "80:8080/udp", "--network", "1"]);
        assert_eq!(asked.packages, ["a==1", "b==2"]);
        assert_eq!(asked.expose, [PortMapping { internal: 80, external: Some(8080), protocol: Protocol::Udp }]);
        assert_eq!(asked.network, NetworkPolicy::LanguageDefault);
        let domains = ["--allow-domain", "example.com", "--allow-domain", "b.example.com"];
        let asked = request(&[&["sbx", "--network"], &domains[..], &["1"]].concat());
        assert_eq!(asked.network, NetworkPolicy::AllowList(vec!["example.com".into(), "b.example.com".into()]));
        assert_eq!(request(&["sbx", "1"]).network, NetworkPolicy::Denied);
        let alone = [&["sbx"], &domains[..], &["1"]].concat();
        assert!(Cli::of(alone.iter().map(OsString::from).collect()).is_err(), "domains of no network mean nothing");
    }

    #[test]
    fn a_shell_has_the_networks_options_too() {
        let words = ["sbx", "shell", "--network", "--allow-domain", "example.com", "--expose", "80"];
        let Command::Shell(shell) = read(&words).command else { panic!("it is a shell") };
        assert_eq!(shell.network.policy(), NetworkPolicy::AllowList(vec!["example.com".into()]));
        assert_eq!(shell.network.expose, [PortMapping { internal: 80, external: None, protocol: Protocol::Tcp }]);
    }

    #[test]
    fn where_packages_come_from_reaches_the_configuration_of_everyone_who_has_them() {
        let options =
            ["--no-validation", "--package-index", "python=https://mirror.example/", "--package-ca", "/ca.pem"];
        for command in ["run", "shell", "up", "doctor"] {
            let config = match read(&[&["sbx", command], &options[..]].concat()).command {
                Command::Run(args) => args.config(),
                Command::Shell(args) => args.config(),
                Command::Up(args) => args.config(),
                Command::Doctor(args) => args.config(),
                other => panic!("{other:?}"),
            };
            assert_eq!(config.package_indexes, [(Language::Python, "https://mirror.example/".into())].into());
            assert_eq!((config.package_validation, config.package_ca), (false, Some("/ca.pem".into())), "{command}");
        }
    }

    #[test]
    fn what_is_not_typed_is_left_to_the_library() {
        let args = run(&["sbx", "1"]);
        let request = args.request(Language::Python, "1");
        assert_eq!((request.timeout, request.memory_mib, request.boot_log), (None, None, false));
        assert_eq!(args.config().accel, SchedulerConfig::default().accel);
    }

    #[test]
    fn the_help_names_the_librarys_defaults() {
        let config = SchedulerConfig::default();
        let mut command = Cli::command();
        let help = command.find_subcommand_mut("run").expect("there is such a command").render_long_help().to_string();
        for default in
            [config.default_timeout.as_secs().to_string(), config.default_memory_mib.to_string(), config.image]
        {
            assert!(help.contains(&format!("[default: {default}]")), "{default}");
        }
    }

    #[test]
    fn json_is_recognised_on_a_wrong_command_line_but_not_in_a_programs_words() {
        let wants = |words: &[&str]| wants_json(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(wants(&["sbx", "run", "--wrong", "--json"]));
        assert!(!wants(&["sbx", "run", "--", "--json"]));
    }
}
