//! Plots: panels of horizontal bars, written as SVG. Pure.
//!
//! A bar may be a stack of parts, and may have a whisker that says how far the slow ones reach. Every panel has a scale of its own.

use std::fmt::Write as _;

/// Colours that are told apart by everybody (after Okabe and Ito), in the order in which parts appear.
const COLOURS: [&str; 8] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#f0e442"];

// All in pixels.
const WIDTH: f64 = 860.0;
const LABELS: f64 = 190.0;
/// Right of the bars: the figure at a bar's end.
const FIGURES: f64 = 90.0;
const MARGIN: f64 = 16.0;
const BAR: f64 = 16.0;
const ROW: f64 = 24.0;
const LINE: f64 = 20.0;

/// At most so many lines divide a panel.
const MOST_TICKS: f64 = 6.0;

/// A whole plot.
pub(super) struct Plot {
    pub(super) title: String,
    pub(super) panels: Vec<Panel>,
}

/// Bars that are measured with one scale.
pub(super) struct Panel {
    /// What is measured, and in which unit.
    pub(super) title: String,
    pub(super) bars: Vec<Bar>,
}

/// One bar, with its parts from left to right.
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) parts: Vec<(&'static str, f64)>,
    /// How far the slow ones reach.
    pub(super) reach: Option<f64>,
}

impl Bar {
    /// A bar of one piece.
    pub(super) fn plain(label: impl Into<String>, name: &'static str, value: f64, reach: Option<f64>) -> Self {
        Self { label: label.into(), parts: vec![(name, value)], reach }
    }

    fn length(&self) -> f64 {
        self.parts.iter().map(|(_, value)| value).sum()
    }

    fn extent(&self) -> f64 {
        self.length().max(self.reach.unwrap_or_default())
    }
}

impl Plot {
    /// The plot as an SVG document.
    pub(super) fn svg(&self) -> String {
        let mut body = String::new();
        let mut y = MARGIN + LINE;
        text(&mut body, (MARGIN, y - 6.0), "start", "#222222", &self.title);
        for panel in &self.panels {
            y = panel.draw(&mut body, y + LINE);
        }
        let height = y + MARGIN;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
        )
    }
}

impl Panel {
    /// Draws it from `top` downwards and says where it ends.
    fn draw(&self, body: &mut String, top: f64) -> f64 {
        text(body, (MARGIN, top), "start", "#222222", &self.title);
        let bars = top + LINE - ROW + BAR;
        let end = bars + ROW * f64::from(u32::try_from(self.bars.len()).unwrap_or(u32::MAX));
        let most = self.bars.iter().map(Bar::extent).fold(0.0, f64::max);
        let scale = if most > 0.0 { (WIDTH - LABELS - FIGURES) / most } else { 0.0 };
        for tick in ticks(most) {
            let x = LABELS + tick * scale;
            let _ = writeln!(
                body,
                "<line x1=\"{x:.1}\" y1=\"{bars:.1}\" x2=\"{x:.1}\" y2=\"{end:.1}\" stroke=\"#dddddd\"/>"
            );
            text(body, (x, end + 14.0), "middle", "#777777", &figure(tick));
        }
        let names = self.names();
        let mut y = bars;
        for bar in &self.bars {
            bar.draw(body, y, scale, &names);
            y += ROW;
        }
        legend(body, end + LINE + 16.0, &names)
    }

    /// The names of all parts, in the order in which they appear.
    fn names(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for (name, _) in self.bars.iter().flat_map(|bar| &bar.parts) {
            if !names.contains(name) {
                names.push(*name);
            }
        }
        names
    }
}

impl Bar {
    fn draw(&self, body: &mut String, y: f64, scale: f64, names: &[&str]) {
        let middle = y + BAR / 2.0;
        text(body, (LABELS - 8.0, middle + 4.0), "end", "#222222", &self.label);
        let mut x = LABELS;
        for (name, value) in &self.parts {
            let (width, colour) = (value * scale, colour(names, name));
            let _ = writeln!(
                body,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\">\
                 <title>{}: {}</title></rect>",
                escaped(name),
                figure(*value)
            );
            x += width;
        }
        if let Some(reach) = self.reach {
            let _ = writeln!(
                body,
                "<path d=\"M{x:.1} {middle:.1}H{end:.1}M{end:.1} {top:.1}V{bottom:.1}\" stroke=\"#222222\"/>",
                end = LABELS + reach * scale,
                top = middle - 4.0,
                bottom = middle + 4.0
            );
        }
        let beside = LABELS + self.extent() * scale + 6.0;
        text(body, (beside, middle + 4.0), "start", "#222222", &figure(self.length()));
    }
}

/// Says which colour is what, in as many lines as it takes, and where it ends. One colour needs no saying.
fn legend(body: &mut String, top: f64, names: &[&str]) -> f64 {
    if names.len() < 2 {
        return top - LINE;
    }
    let (mut x, mut y) = (LABELS, top);
    for name in names {
        // A character of this size is about 7 pixels wide.
        let width = 24.0 + 7.0 * f64::from(u32::try_from(name.chars().count()).unwrap_or(u32::MAX));
        if x + width > WIDTH - MARGIN {
            (x, y) = (LABELS, y + LINE);
        }
        let _ = writeln!(
            body,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{}\"/>",
            y - 9.0,
            colour(names, name)
        );
        text(body, (x + 14.0, y), "start", "#222222", name);
        x += width;
    }
    y
}

fn colour(names: &[&str], name: &str) -> &'static str {
    let place = names.iter().position(|other| *other == name).unwrap_or_default();
    COLOURS[place % COLOURS.len()]
}

fn text(body: &mut String, (x, y): (f64, f64), anchor: &str, colour: &str, text: &str) {
    let text = escaped(text);
    let _ = writeln!(body, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Three digits, or all that stand before the point.
fn figure(value: f64) -> String {
    let decimals = match value {
        _ if value >= 100.0 || value == 0.0 => 0,
        _ if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// Round numbers from nought to `most`.
fn ticks(most: f64) -> Vec<f64> {
    let magnitude = 10_f64.powf((most / MOST_TICKS).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * magnitude);
    let Some(step) = steps.into_iter().find(|step| most / step <= MOST_TICKS) else { return Vec::new() };
    (0_u32..).map(|number| f64::from(number) * step).take_while(|tick| *tick <= most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(0.7).into_iter().map(figure).collect::<Vec<_>>(), ["0", "0.20", "0.40", "0.60"]);
        assert_eq!(ticks(0.0), Vec::<f64>::new(), "nothing has no scale");
    }

    #[test]
    fn a_figure_has_three_digits() {
        assert_eq!([1234.56, 99.95, 12.345, 0.0, 0.126].map(figure), ["1235", "100.0", "12.3", "0", "0.13"]);
    }

    #[test]
    fn a_plot_is_a_document_that_names_what_it_shows() {
        let stack = Bar { label: "a < b".into(), parts: vec![("wait & see", 30.0), ("run", 10.0)], reach: Some(60.0) };
        let plot = Plot {
            title: "a plot".into(),
            panels: vec![
                Panel { title: "time, ms".into(), bars: vec![stack, Bar::plain("floor", "run", 20.0, None)] },
                Panel { title: "memory, MiB".into(), bars: vec![Bar::plain("one", "memory", 5.0, None)] },
            ],
        };
        insta::assert_snapshot!(plot.svg());
    }

    #[test]
    fn bars_are_as_long_as_their_figures() {
        let width = |svg: &str| {
            let of = |part: &str| part.split_once("width=\"")?.1.split_once('"')?.0.parse::<f64>().ok();
            svg.lines().filter(|line| line.contains("<title>")).filter_map(of).collect::<Vec<_>>()
        };
        let bars = vec![Bar::plain("a", "x", 100.0, None), Bar::plain("b", "x", 25.0, None)];
        let plot = Plot { title: String::new(), panels: vec![Panel { title: String::new(), bars }] };
        assert_eq!(width(&plot.svg()), [WIDTH - LABELS - FIGURES, (WIDTH - LABELS - FIGURES) / 4.0]);
    }
}
