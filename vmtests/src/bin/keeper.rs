//! A process that keeps VMs in which a program runs, until it is killed: `keeper RUN_DIR COUNT [GATEWAY]`. It names the VMs, a line
//! each. With a gateway they have a network.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use exec_sandbox::{ExecRequest, Language, NetworkPolicy, SchedulerConfig, VmManager, VmSpec};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let (run_dir, count) = (words.next().ok_or("RUN_DIR is missing")?, words.next().ok_or("COUNT is missing")?);
    let gateway = words.next().map(PathBuf::from);
    let network = if gateway.is_some() { NetworkPolicy::Open } else { NetworkPolicy::Denied };
    // As many as asked for, whatever the machine has.
    let run_dir = Some(run_dir.into());
    let config = SchedulerConfig { run_dir, gateway, cpu_overcommit_ratio: 20.0, ..SchedulerConfig::default() };
    let manager = VmManager::start(config).await?;
    let mut vms = Vec::new();
    for _ in 0..count.parse()? {
        vms.push(manager.create_vm(VmSpec { network: network.clone(), ..VmSpec::new(Language::Raw) }).await?);
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
