//! What the store costs, with a memory as that of a VM whose interpreter is warm.

use std::time::Instant;

use super::*;

/// Of 192 MiB so much has been written to, in pieces of 256 KiB.
const WRITTEN_MIB: u64 = 70;
const PIECE_BYTES: usize = 256 << 10;

fn fill_as_a_guest(draft: &Draft, round: u64) {
    for number in 0..WRITTEN_MIB * 4 {
        let mut word = (round << 32 | number) + 1;
        let words = std::iter::repeat_with(|| {
            word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            word.to_le_bytes()
        });
        let piece: Vec<u8> = words.take(PIECE_BYTES / 8).flatten().collect();
        draft.ram().write_all_at(&piece, number * 700 * 1024).expect("there is room");
    }
    draft.state().write_all_at(&[3; 70_000], 0).expect("there is room");
}

#[test]
#[ignore = "a measurement: cargo nextest run -p exec-sandbox --run-ignored only --no-capture what_the_store_costs"]
fn what_the_store_costs() {
    const ROUNDS: usize = 9;
    let dir = temporary();
    let mut times = ["publish", "find", "find after a boot"].map(|name| (name, Vec::new()));
    for round in 0..ROUNDS {
        let parts = Parts { memory_mib: 192, ..parts(&round.to_string()) };
        let draft = store(&dir).begin(&parts).expect("the store works").expect("it is new");
        fill_as_a_guest(&draft, round as u64);
        let mut time = |number: usize, work: &mut dyn FnMut()| {
            let started = Instant::now();
            work();
            times[number].1.push(started.elapsed());
        };
        let mut draft = Some(draft);
        time(0, &mut || drop(draft.take().expect("it is the first time").publish().expect("the store works")));
        let fresh = store(&dir);
        time(1, &mut || assert!(find(&fresh, &parts).is_some()));
        fs::remove_file(fresh.template_dir(parts.key()).join(VERIFIED)).expect("it is there");
        time(2, &mut || assert!(find(&fresh, &parts).is_some()));
    }
    for (name, mut times) in times {
        times.sort();
        println!("{name:18} {:?}, at most {:?} (median of {ROUNDS})", times[ROUNDS / 2], times[ROUNDS - 1]);
    }
}
