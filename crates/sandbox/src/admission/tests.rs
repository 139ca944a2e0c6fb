//! Admission with a machine that says what the test wants, and with time that passes when all wait.

use tokio::{
    task::{JoinHandle, yield_now},
    time::Instant,
};

use super::*;

/// A budget of 1000 MiB and three cores in which a VM is charged 100 MiB more than its guest has.
const BUDGET: Budget =
    Budget { capacity: Size { memory_mib: 1000, cpu_millis: 3000 }, reserve_mib: 50, overhead_mib: 100 };

/// A machine, and how often it was looked at.
#[derive(Clone, Debug, Default)]
struct Fake(Arc<Mutex<(Sample, usize)>>);

impl Fake {
    fn becomes(&self, sample: Sample) {
        self.0.lock().expect("no panic").0 = sample;
    }

    fn looks(&self) -> usize {
        self.0.lock().expect("no panic").1
    }
}

impl Live for Fake {
    fn sample(&self) -> Sample {
        let mut state = self.0.lock().expect("no panic");
        state.1 += 1;
        state.0
    }
}

/// For tests of others: room for many VMs, of which one may execute.
pub(crate) fn one_core() -> Admission {
    one_core_of(Fake::default())
}

/// The same on a machine that is busy with other things.
pub(crate) fn one_busy_core() -> Admission {
    let machine = Fake::default();
    machine.becomes(Sample { stalled_percent: Some(90.0), ..Sample::default() });
    one_core_of(machine)
}

fn one_core_of(machine: Fake) -> Admission {
    let capacity = Size { memory_mib: 100_000, cpu_millis: 1000 };
    Admission::with(Budget { capacity, ..BUDGET }, Box::new(machine))
}

fn admission() -> (Arc<Admission>, Fake) {
    let fake = Fake::default();
    (Arc::new(Admission::with(BUDGET, Box::new(fake.clone()))), fake)
}

fn with_available(mib: u64) -> Sample {
    Sample { available_mib: Some(mib), ..Sample::default() }
}

/// Asks in a task of its own, which has its place in the line when this returns.
async fn ask(admission: &Arc<Admission>, memory_mib: u32, priority: Priority) -> JoinHandle<Result<Permit, Error>> {
    let admission = Arc::clone(admission);
    let asking = tokio::spawn(async move { admission.admit(memory_mib, priority).await });
    yield_now().await;
    asking
}

async fn admitted(asking: JoinHandle<Result<Permit, Error>>) -> Permit {
    asking.await.expect("no panic").expect("it is admitted")
}

fn usage(admission: &Admission) -> Usage {
    admission.shared.state().ledger.usage()
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_free_again_when_it_is_dropped() {
    let (admission, _) = admission();
    let first = admission.admit(400, Priority::Normal).await.expect("there is room");
    let second = admission.admit(400, Priority::Normal).await.expect("there is room");
    let asked = Instant::now();
    let refused = admission.admit(128, Priority::Normal).await.expect_err("there is none, and nobody leaves");
    assert_eq!((refused.kind(), asked.elapsed()), (ErrorKind::Capacity, PATIENCE));
    drop(first);
    drop(admission.admit(128, Priority::Normal).await.expect("there is room again"));
    drop(second);
    assert_eq!(usage(&admission), Usage::default());
}

#[tokio::test(start_paused = true)]
async fn what_can_never_fit_is_refused_at_once_with_the_sums() {
    let (admission, _) = admission();
    let asked = Instant::now();
    let refused = admission.admit(901, Priority::Normal).await.expect_err("it is too large");
    assert_eq!((refused.kind(), asked.elapsed()), (ErrorKind::Capacity, Duration::ZERO));
    let expected = "admitting a VM of 901 MiB: it is charged 1001 MiB with 1 core, QEMU included, and all VMs together \
                    1000 MiB at most";
    assert_eq!(refused.to_string(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_small_request_does_not_overtake_a_large_one() {
    let (admission, _) = admission();
    let holder = admission.admit(500, Priority::Normal).await.expect("there is room");
    let large = ask(&admission, 500, Priority::Normal).await;
    let small = ask(&admission, 128, Priority::Normal).await;
    assert!(!small.is_finished(), "it waits behind the large one, though it would fit");
    drop(holder);
    let large = admitted(large).await;
    admitted(small).await;
    drop(large);
}

#[tokio::test(start_paused = true)]
async fn somebody_who_waits_comes_before_a_refill_that_asked_earlier() {
    let (admission, _) = admission();
    let holder = admission.admit(900, Priority::Normal).await.expect("there is room");
    let refill = ask(&admission, 900, Priority::Low).await;
    let run = ask(&admission, 900, Priority::Normal).await;
    drop(holder);
    let run = admitted(run).await;
    assert!(!refill.is_finished());
    drop(run);
    admitted(refill).await;
}

#[tokio::test(start_paused = true)]
async fn a_future_that_is_dropped_leaves_the_line() {
    let (admission, _) = admission();
    let holder = admission.admit(500, Priority::Normal).await.expect("there is room");
    let large = ask(&admission, 900, Priority::Normal).await;
    let small = ask(&admission, 128, Priority::Normal).await;
    large.abort();
    drop(admitted(small).await);
    drop(holder);
    assert_eq!(usage(&admission), Usage::default());
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_nobody_takes_any_more_goes_to_the_next() {
    let (admission, _) = admission();
    let holder = admission.admit(900, Priority::Normal).await.expect("there is room");
    let gone = ask(&admission, 900, Priority::Normal).await;
    let next = ask(&admission, 900, Priority::Normal).await;
    drop(holder);
    // It has been called and has not been run since.
    gone.abort();
    admitted(next).await;
}

/// Waits for CPU and keeps it instead of what the permit has.
async fn take_cpu(permit: &mut Permit) -> Result<(), Error> {
    permit.give_back_cpu();
    let cpu = permit.claim_cpu().await?;
    permit.keep_cpu(cpu);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_idle_vm_holds_memory_and_no_cpu() {
    let (admission, _) = admission();
    let mut idle = Vec::new();
    for _ in 0..5 {
        let mut permit = admission.admit(100, Priority::Normal).await.expect("there is memory and CPU");
        permit.give_back_cpu();
        idle.push(permit);
    }
    let held = Size { memory_mib: 1000, cpu_millis: 0 };
    assert_eq!((usage(&admission).vms, usage(&admission).held), (5, held));
    for permit in idle.iter_mut().take(3) {
        take_cpu(permit).await.expect("there are three cores");
        take_cpu(permit).await.expect("it may be asked for again");
    }
    let refused = take_cpu(&mut idle[3]).await.expect_err("all cores are taken, and nobody gives one back");
    let expected = "admitting an execution: 1 core did not become free, and the line did not move for 120 s; 1000 of \
                    1000 MiB and 3 of 3 cores are held by 5 VMs, and 0 more wait";
    assert_eq!(refused.to_string(), expected);
    idle[0].give_back_cpu();
    take_cpu(&mut idle[3]).await.expect("one was given back");
}

#[tokio::test(start_paused = true)]
async fn an_execution_does_not_wait_for_the_memory_of_others() {
    let (admission, _) = admission();
    let mut session = admission.admit(900, Priority::Normal).await.expect("there is room");
    session.give_back_cpu();
    let vm = ask(&admission, 128, Priority::Normal).await;
    take_cpu(&mut session).await.expect("there is CPU");
    drop(session);
    admitted(vm).await;
}

#[tokio::test(start_paused = true)]
async fn a_shut_gate_delays_the_first_in_the_line_until_it_opens() {
    let (admission, machine) = admission();
    let holder = admission.admit(200, Priority::Normal).await.expect("no VM runs yet");
    machine.becomes(with_available(100));
    let waiting = ask(&admission, 200, Priority::Normal).await;
    sleep(Duration::from_secs(60)).await;
    assert!(!waiting.is_finished());
    let looks = machine.looks();
    assert!((30..=40).contains(&looks), "it is looked at every two seconds at last, not {looks} times a minute");
    machine.becomes(with_available(350 + 300));
    drop(admitted(waiting).await);
    let looks = machine.looks();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(machine.looks(), looks, "nobody waits, nobody looks");
    drop(holder);
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_boots_is_charged_against_the_machine_until_it_has_booted() {
    let (admission, machine) = admission();
    // Room for one VM and the reserve, and not for two.
    machine.becomes(with_available(300 + 50 + 299));
    let first = admission.admit(200, Priority::Normal).await.expect("no VM runs yet");
    let second = ask(&admission, 200, Priority::Normal).await;
    sleep(Duration::from_secs(10)).await;
    assert!(!second.is_finished(), "the first one has been granted memory that it has not taken yet");
    first.booted();
    let booted = Instant::now();
    admitted(second).await;
    assert_eq!(booted.elapsed(), Duration::ZERO, "it need not wait for the next look");
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_shuts_while_somebody_waits_already_is_watched_too() {
    let (admission, machine) = admission();
    let staying = admission.admit(200, Priority::Normal).await.expect("there is room");
    let leaving = admission.admit(600, Priority::Normal).await.expect("there is room");
    let waiting = ask(&admission, 200, Priority::Normal).await;
    machine.becomes(with_available(0));
    drop(leaving);
    sleep(Duration::from_secs(10)).await;
    assert!(!waiting.is_finished(), "the ledger has room and the machine has none");
    machine.becomes(Sample::default());
    admitted(waiting).await;
    drop(staying);
}

#[tokio::test(start_paused = true)]
async fn when_the_one_who_looks_leaves_another_one_looks() {
    let (admission, machine) = admission();
    let holder = admission.admit(200, Priority::Normal).await.expect("no VM runs yet");
    machine.becomes(with_available(0));
    let first = ask(&admission, 200, Priority::Normal).await;
    let second = ask(&admission, 200, Priority::Normal).await;
    sleep(Duration::from_secs(10)).await;
    first.abort();
    sleep(Duration::from_secs(10)).await;
    machine.becomes(Sample::default());
    admitted(second).await;
    drop(holder);
}

#[tokio::test(start_paused = true)]
async fn one_vm_is_let_through_on_a_machine_that_is_busy_with_other_things() {
    let (admission, machine) = admission();
    machine.becomes(Sample { stalled_percent: Some(90.0), ..with_available(0) });
    let first = admission.admit(200, Priority::Normal).await.expect("no VM of ours runs");
    let second = ask(&admission, 200, Priority::Normal).await;
    sleep(Duration::from_secs(10)).await;
    assert!(!second.is_finished());
    drop(first);
    admitted(second).await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_in_vain_is_told_who_has_it_and_which_gate_is_shut() {
    let (admission, machine) = admission();
    let _holder = admission.admit(200, Priority::Normal).await.expect("no VM runs yet");
    machine.becomes(with_available(100));
    let refused = admission.admit(200, Priority::Normal).await.expect_err("the gate stays shut");
    let expected = "admitting a VM of 200 MiB: 300 MiB with 1 core did not become free, and the line did not move for \
                    120 s; 300 of 1000 MiB and 1 of 3 cores are held by 1 VM, and 0 more wait";
    assert_eq!(refused.to_string(), expected);
    let gate = std::error::Error::source(&refused).expect("a gate was shut").to_string();
    let expected = "the host has 100 MiB of memory available and one more VM needs 650 MiB to be there";
    assert_eq!((refused.kind(), gate.as_str()), (ErrorKind::Capacity, expected));
}

#[tokio::test(start_paused = true)]
async fn a_line_that_moves_gets_everybody_through() {
    let (admission, _) = admission();
    let mut holder = admission.admit(900, Priority::Normal).await.expect("there is room");
    let mut line = Vec::new();
    for _ in 0..12 {
        line.push(ask(&admission, 900, Priority::Normal).await);
    }
    let refill = ask(&admission, 900, Priority::Low).await;
    let begun = Instant::now();
    for next in line {
        sleep(Duration::from_secs(100)).await;
        drop(holder);
        holder = admitted(next).await;
    }
    assert_eq!(begun.elapsed(), Duration::from_secs(20 * 60));
    drop(holder);
    admitted(refill).await;
}

#[tokio::test(start_paused = true)]
async fn a_line_that_stands_still_is_left_120_s_after_it_moved_last() {
    let (admission, _) = admission();
    let first = admission.admit(900, Priority::Normal).await.expect("there is room");
    let second = ask(&admission, 900, Priority::Normal).await;
    sleep(Duration::from_secs(70)).await;
    let (third, fourth) = (ask(&admission, 900, Priority::Normal).await, ask(&admission, 900, Priority::Normal).await);
    sleep(Duration::from_secs(10)).await;
    drop(first);
    let _second = admitted(second).await;
    let moved = Instant::now();
    for waiting in [third, fourth] {
        let refused = waiting.await.expect("no panic").expect_err("the second one stays");
        assert_eq!((refused.kind(), moved.elapsed()), (ErrorKind::Capacity, PATIENCE));
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_gets_on_because_somebody_ahead_gives_up_or_somebody_behind_is_served() {
    let (admission, _) = admission();
    let mut session = admission.admit(900, Priority::Normal).await.expect("there is room");
    let (gives_up, asked) = (ask(&admission, 900, Priority::Normal).await, Instant::now());
    let stays = ask(&admission, 900, Priority::Normal).await;
    sleep(Duration::from_secs(60)).await;
    gives_up.abort();
    // An execution passes those who wait for memory.
    take_cpu(&mut session).await.expect("there is CPU");
    stays.await.expect("no panic").expect_err("the session keeps its memory");
    assert_eq!(asked.elapsed(), PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn one_ahead_who_gives_up_lets_the_line_move_if_somebody_is_granted_for_it() {
    let (admission, _) = admission();
    let _holder = admission.admit(500, Priority::Normal).await.expect("there is room");
    let large = ask(&admission, 900, Priority::Normal).await;
    let small = ask(&admission, 200, Priority::Normal).await;
    let last = ask(&admission, 900, Priority::Normal).await;
    sleep(Duration::from_secs(60)).await;
    large.abort();
    let _small = admitted(small).await;
    let moved = Instant::now();
    last.await.expect("no panic").expect_err("nobody leaves any more");
    assert_eq!(moved.elapsed(), PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn a_closed_ledger_sends_everyone_away() {
    let (admission, _) = admission();
    let mut holder = admission.admit(900, Priority::Normal).await.expect("there is room");
    let waiting = ask(&admission, 128, Priority::Normal).await;
    admission.close();
    let sent_away = waiting.await.expect("no panic").expect_err("it is closed");
    assert_eq!(sent_away.kind(), ErrorKind::Closed);
    let late = admission.admit(128, Priority::Normal).await.expect_err("it is closed");
    assert_eq!(late.kind(), ErrorKind::Closed);
    holder.give_back_cpu();
    assert_eq!(take_cpu(&mut holder).await.expect_err("it is closed").kind(), ErrorKind::Closed);
    drop(holder);
    assert_eq!(usage(&admission), Usage::default());
}

#[test]
fn cores_are_shown_as_people_write_them() {
    assert_eq!([3000, 1500, 250, 1001].map(cores), ["3", "1.5", "0.25", "1.001"]);
}
