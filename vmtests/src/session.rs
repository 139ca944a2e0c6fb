//! A VM that runs one program after another, and what each of them must come to.

use std::time::Duration;

use exec_sandbox::{Error, ExecRequest, Exit, Language, Outcome, QemuVm, VmManager, VmSpec};

use crate::{World, stderr, stdout};

/// One VM of a world of its own.
#[derive(Debug)]
pub struct Session {
    world: World,
    manager: VmManager,
    vm: QemuVm,
}

impl Session {
    /// Boots one.
    ///
    /// # Panics
    /// It does not boot; the error says what is missing.
    pub async fn start(language: Language) -> Self {
        let world = World::new();
        let manager =
            VmManager::start(world.config()).await.unwrap_or_else(|error| panic!("{error}: {:?}", error.remedy()));
        let vm = manager.create_vm(VmSpec::new(language)).await;
        let vm = vm.unwrap_or_else(|error| panic!("{error}: {:?}", error.remedy()));
        Self { world, manager, vm }
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &QemuVm {
        &self.vm
    }

    /// Asks for an execution.
    ///
    /// # Errors
    /// As the sandbox has it.
    pub async fn try_run(&self, code: &str, timeout: Option<Duration>) -> Result<Outcome, Error> {
        self.vm.execute(ExecRequest { timeout, ..ExecRequest::new(code) }).await
    }

    /// Runs a program.
    ///
    /// # Panics
    /// The sandbox fails.
    pub async fn run(&self, code: &str) -> Outcome {
        self.try_run(code, None)
            .await
            .unwrap_or_else(|error| panic!("{code}: {error}: {:?}", std::error::Error::source(&error)))
    }

    /// Runs a program that has a second.
    ///
    /// # Panics
    /// The sandbox fails.
    pub async fn run_briefly(&self, code: &str) -> Outcome {
        let second = Some(Duration::from_secs(1));
        self.try_run(code, second)
            .await
            .unwrap_or_else(|error| panic!("{code}: {error}: {:?}", std::error::Error::source(&error)))
    }

    /// Runs a program that ends with `exit`, writes exactly `out`, and whose standard error contains `err`, or is empty if that is.
    ///
    /// # Panics
    /// It comes to anything else.
    pub async fn check(&self, code: &str, exit: Exit, out: &str, err: &str) {
        let outcome = self.run(code).await;
        assert_eq!((outcome.exit, stdout(&outcome).as_str()), (exit, out), "{code}\n{}", stderr(&outcome));
        let said = stderr(&outcome);
        assert!(said.contains(err) && said.is_empty() == err.is_empty(), "{code}\n{said}");
    }

    /// Runs a program that ends well and writes exactly `out`.
    ///
    /// # Panics
    /// It comes to anything else.
    pub async fn says(&self, code: &str, out: &str) {
        self.check(code, Exit::Code(0), out, "").await;
    }

    /// Ends the VM and proves that nothing is left.
    ///
    /// # Panics
    /// Something is.
    pub async fn end(self) {
        let id = self.vm.vm_id().to_owned();
        self.manager.close().await.expect("nothing is left");
        self.world.assert_empty([id]);
    }
}
