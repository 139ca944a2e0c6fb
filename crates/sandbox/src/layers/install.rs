//! Installing: a machine of its own in which a set of packages is resolved, fetched, compiled and packed into one file.
//!
//! The machine reaches the packages' registries and nothing else, nothing of the packages runs in it, and it ends with the installation.
//! What comes out of it is bytes: this host never looks into them.

use std::{path::Path, time::Duration};

use exec_sandbox_wire as wire;
use tokio::{fs::File, io::BufWriter, sync::mpsc};
use wire::limits::MAX_EXEC_TIMEOUT;

use super::{
    Failure, Layers,
    source::Source,
    store::Draft,
    verdict::{self, Refusal},
};
use crate::{
    Ending, Error, ErrorKind, Exit, Language, Output, QemuVm, WriteOptions,
    admission::{Admission, Charged, Priority},
    config::PACKAGE_INSTALL_MEMORY_MIB,
    request::{PackageSet, ValidExec, ValidVm},
    vm::Common,
};

/// Tries for what may pass, and how long after each the next one is.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

/// The file of certificates, in the home directory.
const CERTIFICATES: &str = "certificates.pem";

/// The packed layer, there too.
const PACKED: &str = "layer";

/// More than this is packed compressed, in MiB: a file of over 500 cannot be taken out.
const PLAIN_MIB: u64 = 450;

/// Most packages that a layer's manifest names.
const MAX_INSTALLED: usize = 2000;

const PYTHON: &str = include_str!("scripts/python.sh");
const JAVASCRIPT: &str = include_str!("scripts/javascript.sh");
const COMPILE: &str = include_str!("scripts/compile.sh");
const PACK: &str = include_str!("scripts/pack.sh");
const ASK: &str = include_str!("scripts/ask.sh");

/// What machines are made of that install packages.
#[derive(Clone, Debug)]
pub(crate) struct Workshop {
    pub(crate) common: Common,
    pub(crate) admission: Admission,
}

/// One installation.
#[derive(Debug)]
pub(super) struct Installation<'a> {
    pub(super) workshop: &'a Workshop,
    /// Those of which its layer becomes one.
    pub(super) layers: &'a Layers,
    pub(super) set: &'a PackageSet,
    /// The certificates that registries are known by; `None`: the image's own.
    pub(super) authorities: Option<Vec<u8>>,
    /// Where what the installer says goes as it says it.
    pub(super) progress: Option<mpsc::Sender<Output>>,
}

/// How one program of ours ended in the machine.
struct Ran {
    exit: Exit,
    stdout: String,
    stderr: String,
}

impl Installation<'_> {
    /// Installs the set and leaves the layer's content where `draft` wants it. Returns what is in it.
    pub(super) async fn run(&self, draft: &Draft) -> Result<Vec<String>, Failure> {
        let mut source = self.layers.sources.of(self.set.language())?;
        if source.is_to_be_asked {
            source = self.ask(source).await?;
        }
        let vm = self.machine(&source).await?;
        let installed = async {
            self.install(&vm, &source).await?;
            let installed = self.pack(&vm).await?;
            take_out(&vm, draft, self.layers).await?;
            Ok(installed)
        };
        let installed = installed.await;
        vm.end(Ending::AtOnce).await?;
        installed
    }

    /// A machine that reaches `source`, with the certificates that it is known by.
    async fn machine(&self, source: &Source) -> Result<QemuVm, Failure> {
        let Workshop { common, admission } = self.workshop;
        let memory_mib = common.config.package_install_memory_mib.unwrap_or(PACKAGE_INSTALL_MEMORY_MIB);
        let spec = ValidVm {
            network: Some(self.layers.sources.network(source).await?),
            task_id: Some("package-install".into()),
            installs: true,
            ..ValidVm::plain(Language::Raw, memory_mib)
        };
        let charged = Charged { memory_mib, has_network: true };
        let permit = admission.admit(charged, Priority::Normal).await?;
        let vm = QemuVm::boot(common, spec, permit, &common.closing).await?;
        if let Some(pem) = &self.authorities {
            vm.write_file(CERTIFICATES, &pem[..], WriteOptions::default()).await?;
        }
        Ok(vm)
    }

    /// Asks the index where its files are, in a machine that reaches the index alone.
    async fn ask(&self, source: Source) -> Result<Source, Failure> {
        let vm = self.machine(&source).await?;
        let suffix = if self.set.language() == Language::Python { "/" } else { "" };
        let names: Vec<String> = self.set.names().map(|name| name.replace('/', "%2f")).collect();
        let more = [("NAMES", names.join(" ")), ("SUFFIX", suffix.to_owned())];
        let ran = self.try_until_it_stays(&vm, ASK, self.env(&source, more)).await;
        vm.end(Ending::AtOnce).await?;
        let hosts = ran?.stdout;
        let host = |line: &str| Some(line.strip_prefix("https://")?.rsplit('@').next()?.to_ascii_lowercase());
        Ok(source.with_hosts(hosts.lines().filter_map(host)))
    }

    async fn install(&self, vm: &QemuVm, source: &Source) -> Result<(), Failure> {
        let script = match self.set.language() {
            Language::Python => PYTHON,
            Language::JavaScript | Language::Raw => JAVASCRIPT,
        };
        let packages = [("PACKAGES", self.set.requirements().join(" "))];
        self.try_until_it_stays(vm, script, self.env(source, packages)).await?;
        if self.set.language() == Language::Python {
            // What has not been compiled when its time is up, each run compiles for itself.
            execute(vm, COMPILE, Vec::new(), None).await?;
        }
        Ok(())
    }

    async fn pack(&self, vm: &QemuVm) -> Result<Vec<String>, Failure> {
        let ran = execute(vm, PACK, vec![("PLAIN_MIB", PLAIN_MIB.to_string())], self.progress.clone()).await?;
        ran.verdict().map_err(|refusal| self.failure(refusal, ""))?;
        let is_name = |line: &&str| line.len() < 300 && line.chars().all(|c| c.is_ascii_graphic() || c == ' ');
        let mut installed: Vec<String> =
            ran.stdout.lines().filter(is_name).take(MAX_INSTALLED).map(str::to_owned).collect();
        installed.sort_unstable();
        Ok(installed)
    }

    /// Runs a script, and again after a while if what it met may have passed.
    async fn try_until_it_stays(
        &self,
        vm: &QemuVm,
        script: &str,
        env: Vec<(&'static str, String)>,
    ) -> Result<Ran, Failure> {
        let mut pauses = PAUSES.into_iter();
        loop {
            let ran = execute(vm, script, env.clone(), self.progress.clone()).await?;
            let Err(refusal) = ran.verdict() else { return Ok(ran) };
            match pauses.next().filter(|_| refusal.is_transient) {
                Some(pause) => {
                    self.say(&format!("trying again in {} s\n", pause.as_secs())).await;
                    tokio::time::sleep(pause).await;
                }
                None => {
                    let refused = vm.traffic().await.map(|traffic| traffic.refusals);
                    let met: Vec<&str> = refused
                        .iter()
                        .flat_map(|all| all.iter())
                        .filter(|(_, count)| *count > 0)
                        .map(|(name, _)| name)
                        .collect();
                    return Err(self.failure(refusal, &met.join(", ")));
                }
            }
        }
    }

    async fn say(&self, text: &str) {
        if let Some(progress) = &self.progress {
            let _ = progress.send(Output::Progress(text.as_bytes().to_vec().into())).await;
        }
    }

    fn env<const N: usize>(&self, source: &Source, more: [(&'static str, String); N]) -> Vec<(&'static str, String)> {
        let mut env: Vec<(&'static str, String)> = more.into();
        if let Some(index) = &source.index {
            env.push(("INDEX", index.url().to_owned()));
        }
        if self.authorities.is_some() {
            let path = format!("/home/user/{CERTIFICATES}");
            env.extend(["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "CERTIFICATES"].map(|name| (name, path.clone())));
        }
        env
    }

    /// `met`: the names of what the machine's network refused.
    fn failure(&self, refusal: Refusal, met: &str) -> Failure {
        let kind = if refusal.is_transient { ErrorKind::PackageInstallTransient } else { ErrorKind::PackageInstall };
        let blocked = (!met.is_empty()).then_some(
            "the index or its files are at a host that is not known: name it with the others in EXEC_SANDBOX_REGISTRIES",
        );
        let message = format!("installing {}", self.set.requirements().join(" "));
        let cause =
            if met.is_empty() { refusal.said } else { format!("{} (its network refused: {met})", refusal.said) };
        Failure {
            kind,
            message,
            remedy: refusal.remedy.or(blocked).map(str::to_owned),
            cause: Some(cause),
            is_of_a_lost_machine: false,
        }
    }
}

impl Ran {
    fn verdict(&self) -> Result<(), Refusal> {
        match self.exit {
            Exit::Code(0) => Ok(()),
            Exit::TimedOut => Err(verdict::too_slow(&self.stderr)),
            exit => Err(verdict::judge(exit.code(), &format!("{}\n{}", self.stderr, self.stdout))),
        }
    }
}

/// Runs a script of ours, whose standard error is for people.
async fn execute(
    vm: &QemuVm,
    script: &str,
    env: Vec<(&'static str, String)>,
    progress: Option<mpsc::Sender<Output>>,
) -> Result<Ran, Error> {
    let variable = |(name, value): (&str, String)| wire::EnvVar { name: name.into(), value: value.into() };
    let env = env.into_iter().map(variable).collect();
    let program = wire::Program { code: script.into(), env };
    let request =
        ValidExec { language: Language::Raw, timeout: MAX_EXEC_TIMEOUT, program, is_last: false, is_rehearsal: false };
    let (sender, receiver) = mpsc::channel(16);
    let (executed, ()) = tokio::join!(vm.run(request, Some(sender)), pass_on(receiver, progress));
    let ran = executed?.ran;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ran { exit: ran.exit, stdout: text(&ran.stdout), stderr: text(&ran.stderr) })
}

/// Hands what the installer says to whoever listens.
async fn pass_on(mut said: mpsc::Receiver<Output>, mut progress: Option<mpsc::Sender<Output>>) {
    while let Some(piece) = said.recv().await {
        if let (Output::Stderr(bytes), Some(listener)) = (piece, &progress)
            && listener.send(Output::Progress(bytes)).await.is_err()
        {
            progress = None;
        }
    }
}

/// Takes the packed layer out, to where `draft` wants it.
async fn take_out(vm: &QemuVm, draft: &Draft, layers: &Layers) -> Result<(), Failure> {
    let size = vm.stat(PACKED).await?.size;
    draft.make_room(size, || layers.let_go_of_removed())?;
    let path = draft.path();
    let file = create(&path).await.map_err(super::store::StoreError::io("create", &path))?;
    vm.read_file(PACKED, BufWriter::with_capacity(1 << 20, file)).await?;
    Ok(())
}

async fn create(path: &Path) -> std::io::Result<File> {
    // What a machine that was lost has left of it is written over.
    File::options().write(true).create(true).truncate(true).open(path).await
}
