//! Comparing: commands that run in turns, so that what slows the machine down for a while slows all of them down.
//!
//! Each command's wall time is a figure, and if its output is JSON, so is every number in it: those of `sbx bench … --json` are put
//! together by what they are of.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt::Write as _,
    io::Write as _,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Separates commands.
const SEPARATOR: &str = "--";

/// The figure that every command has.
const WALL: &str = "wall_ms";

/// Fields that say of what the numbers beside them are. Elements of a list that differ in one are different things, and all others are
/// samples of the same.
const KEYS: [&str; 7] = ["language", "state", "in_flight", "sessions", "way", "content", "mib"];

/// What one command has come to so far: figures by name, with their samples.
type Figures = BTreeMap<String, Vec<f64>>;

/// Runs the commands in `words` in turns, each `number` times, and prints what they took. Figures whose names contain none of `only` are
/// left out, if there is any.
pub(crate) fn run(number: u32, only: &[String], words: &[OsString]) -> Result<()> {
    let commands = commands(words);
    ensure!(
        (2..=names().count()).contains(&commands.len()),
        "a comparison takes two commands or some more, with `--` before each"
    );
    let mut all = vec![Figures::new(); commands.len()];
    for round in 0..number {
        eprintln!("round {}/{number}", round + 1);
        for place in order(round, commands.len()) {
            measure(commands[place], &mut all[place])?;
        }
    }
    let mut page = String::new();
    for (name, command) in names().zip(&commands) {
        let command = command.join(OsStr::new(" "));
        let _ = writeln!(page, "{name}: {}", command.display());
    }
    let _ = writeln!(page, "{number} runs of each, in turns\n\n{}", table(&all, only));
    std::io::stdout().write_all(page.as_bytes()).context("printing the comparison")
}

/// Commands are called by letters.
fn names() -> impl Iterator<Item = char> {
    'A'..='Z'
}

fn commands(words: &[OsString]) -> Vec<&[OsString]> {
    words.split(|word| word == SEPARATOR).filter(|command| !command.is_empty()).collect()
}

/// Forwards and backwards by turns: a machine that grows slower or faster favours nobody.
fn order(round: u32, commands: usize) -> Vec<usize> {
    if round.is_multiple_of(2) { (0..commands).collect() } else { (0..commands).rev().collect() }
}

fn measure(command: &[OsString], figures: &mut Figures) -> Result<()> {
    let [program, arguments @ ..] = command else { bail!("there is no command") };
    let begun = Instant::now();
    let run = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    let wall_ms = begun.elapsed().as_secs_f64() * 1000.0;
    ensure!(run.status.success(), "{} failed: {}", program.display(), run.status);
    figures.entry(WALL.into()).or_default().push(wall_ms);
    if let Ok(value) = serde_json::from_slice(&run.stdout) {
        collect(&value, "", figures);
    }
    Ok(())
}

/// Puts every number in `value` among the samples of its name.
fn collect(value: &Value, name: &str, figures: &mut Figures) {
    let within = |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") };
    match value {
        Value::Number(number) => {
            figures.entry(name.to_owned()).or_default().extend(number.as_f64());
        }
        Value::Array(elements) => elements.iter().for_each(|element| collect(element, name, figures)),
        Value::Object(fields) => {
            let keys: Vec<String> = KEYS.iter().filter_map(|key| said(fields.get(*key)?)).collect();
            let name = if keys.is_empty() { name.to_owned() } else { within(&keys.join(" ")) };
            for (field, value) in fields.iter().filter(|(field, _)| !KEYS.contains(&field.as_str())) {
                let field = if name.is_empty() { field.clone() } else { format!("{name}.{field}") };
                collect(value, &field, figures);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

fn said(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A line for each figure that all commands have.
fn table(all: &[Figures], only: &[String]) -> String {
    let Some((first, others)) = all.split_first() else { return String::new() };
    let wanted = |name: &str| name == WALL || only.is_empty() || only.iter().any(|word| name.contains(word.as_str()));
    let shared = first.keys().filter(|name| wanted(name) && others.iter().all(|it| it.contains_key(*name)));
    // Wall time first: it is what all of them have.
    let (wall, rest): (Vec<&String>, Vec<&String>) = shared.partition(|name| *name == WALL);
    let lines: Vec<&String> = wall.into_iter().chain(rest).collect();
    let width = lines.iter().map(|name| name.chars().count()).max().unwrap_or_default();

    let mut table = format!("{:<width$}", "");
    for name in names().take(all.len()) {
        let _ = write!(table, " {:>12} {:>12}", format!("{name} median"), format!("{name} least"));
        if name != 'A' {
            let _ = write!(table, " {:>7}", format!("{name}/A"));
        }
    }
    for name in lines {
        let _ = write!(table, "\n{name:<width$}");
        let base = median(&first[name]);
        for (place, figures) in all.iter().enumerate() {
            let median = median(&figures[name]);
            let least = figures[name].iter().copied().min_by(f64::total_cmp);
            let _ = write!(table, " {:>12} {:>12}", cell(median), cell(least));
            if place > 0 {
                let _ = write!(table, " {:>7}", ratio(median, base));
            }
        }
    }
    table
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let (lower, upper) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some(f64::midpoint(*values.get(lower)?, *values.get(upper)?))
}

fn ratio(value: Option<f64>, base: Option<f64>) -> String {
    match (value, base) {
        (Some(value), Some(base)) if base != 0.0 => format!("{:.3}", value / base),
        _ => "-".into(),
    }
}

fn cell(value: Option<f64>) -> String {
    let Some(value) = value else { return "-".into() };
    let decimals = if value.abs() >= 1000.0 { 0 } else { 2 };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    fn samples(pairs: &[(&str, &[f64])]) -> Figures {
        pairs.iter().map(|(name, values)| ((*name).to_owned(), values.to_vec())).collect()
    }

    #[test]
    fn commands_stand_between_separators() {
        let typed = words(&["a", "-x", "--", "b", "--"]);
        assert_eq!(commands(&typed), [words(&["a", "-x"]), words(&["b"])]);
        assert!(run(1, &[], &words(&["a"])).is_err(), "one command is compared with nothing");
    }

    #[test]
    fn turns_go_forwards_and_backwards() {
        assert_eq!((order(0, 3), order(1, 3)), (vec![0, 1, 2], vec![2, 1, 0]));
    }

    #[test]
    fn numbers_are_put_together_by_what_they_are_of() {
        let sheet = serde_json::json!({
            "accelerator": "tcg",
            "series": [
                {"language": "raw", "samples": [{"total_ms": 1.5, "peak": null}, {"total_ms": 2}]},
                {"language": "python", "samples": [{"total_ms": 9}]},
            ],
            "floor_ms": [3, 4],
        });
        let mut figures = Figures::new();
        collect(&sheet, "", &mut figures);
        let expected: [(&str, &[f64]); 3] = [
            ("floor_ms", &[3.0, 4.0]),
            ("series.python.samples.total_ms", &[9.0]),
            ("series.raw.samples.total_ms", &[1.5, 2.0]),
        ];
        assert_eq!(figures, samples(&expected));
        let mut figures = Figures::new();
        collect(&serde_json::json!([{"language": "raw", "in_flight": 4, "rate": 7}]), "", &mut figures);
        assert_eq!(figures, samples(&[("raw 4.rate", &[7.0])]));
    }

    #[test]
    fn ratios_are_of_medians_and_to_the_first() {
        let one = samples(&[("wall_ms", &[100.0, 300.0, 200.0]), ("a_ms", &[4.0, 2.0]), ("mine", &[1.0])]);
        let other = samples(&[("wall_ms", &[50.0]), ("a_ms", &[6.0])]);
        let zero = samples(&[("wall_ms", &[2000.0]), ("a_ms", &[0.0])]);
        let shown = table(&[one.clone(), other, zero.clone()], &[]);
        let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 3, "a figure that one of them has not is left out: {shown}");
        assert_eq!(lines[1], ["wall_ms", "200.00", "100.00", "50.00", "50.00", "0.250", "2000", "2000", "10.000"]);
        assert_eq!(lines[2], ["a_ms", "3.00", "2.00", "6.00", "6.00", "2.000", "0.00", "0.00", "0.000"]);
        assert!(table(&[zero.clone(), one], &["b".into()]).lines().count() == 2, "wall time is always there");
        assert!(table(&[zero.clone(), zero], &[]).ends_with(" -"), "nothing is no multiple of nothing");
    }

    #[test]
    fn a_command_is_timed_and_what_it_prints_is_read() {
        let mut figures = Figures::new();
        let echo = |text: &str| words(&["/bin/sh", "-c", text]);
        measure(&echo("sleep 0.05; echo '{\"a\": 1}'"), &mut figures).expect("it succeeds");
        measure(&echo("echo no JSON"), &mut figures).expect("it succeeds");
        assert_eq!(figures["a"], [1.0]);
        assert!(figures[WALL].len() == 2 && figures[WALL][0] >= 50.0, "{figures:?}");
        let failure = measure(&echo("exit 3"), &mut figures).expect_err("it fails");
        assert_eq!(failure.to_string(), "/bin/sh failed: exit status: 3");
        assert_eq!(figures[WALL].len(), 2, "what failed took no time");
    }
}
