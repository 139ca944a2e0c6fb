//! A process that keeps VMs in which a program runs, until it is killed: `keeper RUN_DIR COUNT`. It names the VMs, a line each.

use std::io::{self, Write as _};

use exec_sandbox::{ExecRequest, Language, SchedulerConfig, VmManager, VmSpec};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let (run_dir, count) = (words.next().ok_or("RUN_DIR is missing")?, words.next().ok_or("COUNT is missing")?);
    // As many as asked for, whatever the machine has.
    let config =
        SchedulerConfig { run_dir: Some(run_dir.into()), cpu_overcommit_ratio: 20.0, ..SchedulerConfig::default() };
    let manager = VmManager::start(config).await?;
    let mut vms = Vec::new();
    for _ in 0..count.parse()? {
        vms.push(manager.create_vm(VmSpec::new(Language::Raw)).await?);
    }
    let executions = vms.iter().map(|vm| async {
        let (sender, mut output) = tokio::sync::mpsc::channel(1);
        let listen = async {
            output.recv().await;
            writeln!(io::stdout(), "{}", vm.vm_id())
        };
        tokio::join!(vm.execute_streaming(ExecRequest::new("echo running; sleep 1000"), sender), listen)
    });
    futures_util::future::join_all(executions).await;
    Ok(())
}
