//! The figures, as a table for people and as JSON.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde::Serialize;

use super::peer;

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    Gigabits,
    PerSecond,
    Seconds,
    Bytes,
    Share,
    Count,
    Number,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::Gigabits => format!("{value:.2} Gbit/s"),
            Unit::PerSecond => format!("{value:.0} /s"),
            Unit::Seconds if value < 0.1 => format!("{:.3} ms", value * 1e3),
            Unit::Seconds => format!("{value:.3} s"),
            Unit::Count => format!("{value:.0}"),
            Unit::Number => format!("{value:.2}"),
            Unit::Bytes => format!("{:.1} MB", value / 1e6),
            Unit::Share => format!("{:.2} %", value * 100.0),
        }
    }
}

/// The aim of the project for a figure.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Bar {
    /// Applies to the ratio.
    AtLeast(f64),
    /// Applies to the value.
    AtMost(f64),
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figure {
    name: String,
    unit: Unit,
    /// Median of `values`.
    value: f64,
    /// Median of `ratios`.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bar: Option<Bar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
    /// One per round.
    values: Vec<f64>,
    /// To kernel VXLAN, Knot DNS or plain Docker in the same round.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ratios: Vec<f64>,
}

impl Figure {
    pub(super) fn new(name: &str, unit: Unit, values: Vec<f64>) -> Figure {
        let value = median(&values);
        Figure {
            name: name.to_owned(),
            unit,
            value,
            ratio: None,
            bar: None,
            met: None,
            values,
            ratios: Vec::new(),
        }
    }

    pub(super) fn ratios(mut self, ratios: Vec<f64>) -> Figure {
        self.ratio = Some(median(&ratios));
        self.ratios = ratios;
        self
    }

    pub(super) fn bar(mut self, bar: Bar) -> Figure {
        self.met = Some(match bar {
            Bar::AtLeast(least) => self.ratio.is_some_and(|ratio| ratio >= least),
            Bar::AtMost(most) => self.value <= most,
        });
        self.bar = Some(bar);
        self
    }

    fn line(&self) -> String {
        let mut line = format!("{:<52} {:>13}", self.name, self.unit.show(self.value));
        let spread: &[f64] = if self.ratios.is_empty() { &self.values } else { &self.ratios };
        if let Some(ratio) = self.ratio {
            let _ = write!(line, "   ratio {ratio:.2}");
        }
        if let [_, _, ..] = spread {
            let show =
                |value| if self.ratio.is_some() { format!("{value:.2}") } else { self.unit.show(value) };
            let least = spread.iter().copied().fold(f64::INFINITY, f64::min);
            let most = spread.iter().copied().fold(0.0, f64::max);
            let _ = write!(line, " ({} to {})", show(least), show(most));
        }
        if let (Some(bar), Some(met)) = (self.bar, self.met) {
            let text = match bar {
                Bar::AtLeast(least) => format!("{least:.2}"),
                Bar::AtMost(most) => self.unit.show(most),
            };
            let verdict = match (bar, met) {
                (_, true) => "met",
                (Bar::AtLeast(_), false) => "below the bar",
                (Bar::AtMost(_), false) => "above the bar",
            };
            let _ = write!(line, "   bar {text}: {verdict}");
        }
        line.push('\n');
        line
    }
}

/// The median; of two middle values the upper.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// All figures, and the machine and program that they were measured with.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    processor: String,
    processors: usize,
    kernel: String,
    date: String,
    /// Load of the last minute before the benchmark, by other users of the machine.
    load: String,
    weave: String,
    profile: String,
    runs: u32,
    seconds: u32,
    figures: Vec<Figure>,
}

impl Report {
    pub(super) fn new(weave: &Path, runs: u32, seconds: u32) -> Report {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let model = cpus.lines().find(|line| line.starts_with("model name")).and_then(|l| l.split_once(':'));
        let date = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output();
        Report {
            processor: model.map_or("unknown processor", |(_, name)| name.trim()).to_owned(),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            date: date
                .map_or_else(|e| e.to_string(), |d| String::from_utf8_lossy(&d.stdout).trim().to_owned()),
            load: read("/proc/loadavg").split_whitespace().next().unwrap_or("unknown").to_owned(),
            weave: weave.display().to_string(),
            profile: peer::profile(weave),
            runs,
            seconds,
            figures: Vec::new(),
        }
    }

    /// Prints machine, program and method.
    pub(super) fn print_head(&self) -> Result<()> {
        Ok(std::io::stdout().write_all(self.head().as_bytes())?)
    }

    fn head(&self) -> String {
        let mut text = format!(
            "machine: {}, {} processors, Linux {}, {}, load {}\nprogram: {} (profile {})\n",
            self.processor, self.processors, self.kernel, self.date, self.load, self.weave, self.profile
        );
        let _ = writeln!(
            text,
            "medians of {} interleaved rounds of {} s; a ratio is to kernel VXLAN (DNS: to Knot DNS; containers: to the own network of the engine) in the same round (least to most)",
            self.runs, self.seconds
        );
        if self.profile != "release" {
            text.push_str("NOTICE: not a release build\n");
        }
        let idle = self.load.parse::<f64>().is_ok_and(|load| load < 0.5);
        if !idle {
            text.push_str("NOTICE: the machine is busy; only the ratios are meaningful\n");
        }
        text.push('\n');
        text
    }

    /// Prints figures and adds them to the report.
    pub(super) fn print(&mut self, figures: Vec<Figure>) -> Result<()> {
        let text: String = figures.iter().map(Figure::line).collect();
        self.figures.extend(figures);
        // Not `println!`: if the reader has gone, that must be an error and not a panic, so that labs are removed.
        Ok(std::io::stdout().write_all(text.as_bytes())?)
    }

    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}
