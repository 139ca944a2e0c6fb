//! The benches, small: they measure real VMs, draw what they measured, and leave nothing behind.

use std::{fs, process::Stdio};

use serde_json::Value;
use vmtests::World;

/// What a bench printed as JSON. One that failed says why.
fn bench(world: &World, args: &[&str]) -> Value {
    let output = world.sbx().arg("bench").args(args).arg("--json").stdin(Stdio::null()).output().expect("sbx starts");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&stdout).expect("it is JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("it is a list").iter().map(|number| number.as_f64().expect("it is a number")).collect()
}

#[test]
fn restored_runs_are_measured_beside_the_floor_and_drawn() {
    let world = World::new();
    let plot = world.run_dir().join("restore.svg");
    let path = plot.to_str().expect("it is text");
    let sheet = bench(&world, &["restore", "-l", "raw", "-n", "2", "--plot", path]);
    assert_eq!(sheet["rung"], "restore");
    let floor = numbers(&sheet["qemu_alone_ms"]);
    assert!(floor.len() == 2 && floor.iter().all(|ms| *ms > 0.0), "{floor:?}");
    let samples = sheet["series"][0]["samples"].as_array().expect("it is a list");
    assert_eq!(samples.len(), 2, "{sheet}");
    for sample in samples {
        let timing = &sample["timing"];
        assert!(timing["guest_wait_ms"].as_f64() > Some(0.0) && timing["total_ms"].as_f64() > Some(0.0), "{timing}");
    }
    let drawn = fs::read_to_string(&plot).expect("it is there");
    assert!(["<svg ", "guest wait", "QEMU alone"].iter().all(|words| drawn.contains(words)), "{drawn}");
}

#[test]
fn runs_in_flight_are_counted_and_leave_nothing_behind() {
    let world = World::new();
    let sheet = bench(&world, &["concurrency", "-l", "raw", "-n", "1", "2", "-s", "1"]);
    assert_eq!(sheet["left_behind"], serde_json::json!([]));
    assert_eq!(sheet["after"]["directories"], 0);
    for (level, in_flight) in sheet["levels"].as_array().expect("it is a list").iter().zip([1, 2]) {
        assert_eq!(level["in_flight"], in_flight);
        assert!(numbers(&level["total_ms"]).len() >= in_flight, "{level}");
        assert!(level["runs_per_second"].as_f64() > Some(0.0), "{level}");
    }
}

#[test]
fn a_second_session_shares_memory_with_the_first() {
    let world = World::new();
    let levels = bench(&world, &["density", "-l", "raw", "-n", "1", "2"]);
    for (first, state) in [(0, "fresh"), (2, "used")] {
        assert_eq!(levels[first]["state"], state, "{levels}");
        // What both have for themselves: those of other tests share with them or do not, as they come and go. One that shares with nobody
        // takes 65 MB.
        let alone = levels[first + 1]["uss_bytes"].as_f64().expect("it was measured") / 2.0;
        assert!(alone < 45e6, "{levels}");
    }
}
