//! Charts: groups of bars with their spread, and distributions.

use super::{Anchor, CHARACTER, Colour, FAINT, Figure, INK};
use crate::bench::stats::Summary;
use crate::bench::table::short;

/// Colours that are told apart also by those who see fewer of them (Okabe and Ito's palette), by the place of a
/// name among all names.
const PALETTE: [Colour; 7] = [
    Colour(0x00, 0x72, 0xb2),
    Colour(0xe6, 0x9f, 0x00),
    Colour(0x00, 0x9e, 0x73),
    Colour(0xcc, 0x79, 0xa7),
    Colour(0x56, 0xb4, 0xe9),
    Colour(0xd5, 0x5e, 0x00),
    Colour(0x99, 0x99, 0x99),
];

const WIDTH: i32 = 900;
const MARGIN: i32 = 20;
/// Room for names at the left, and for the number at the right.
const NAMES: i32 = 270;
const NUMBERS: i32 = 90;
const BAR: i32 = 18;

/// One bar: whose it is, and how long.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: Summary,
}

/// Bars that are to be compared with each other.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) title: String,
    pub(crate) bars: Vec<Bar>,
}

/// Groups with one scale.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    /// What is shown, and its unit.
    pub(crate) title: String,
    pub(crate) groups: Vec<Group>,
}

/// Panels one under the other. Bars are medians, the thin line goes from the smallest to the greatest value.
pub(crate) fn bars(title: &str, note: &str, panels: &[Panel]) -> Figure {
    let mut names: Vec<&str> = Vec::new();
    for bar in panels.iter().flat_map(|panel| &panel.groups).flat_map(|group| &group.bars) {
        if !names.contains(&bar.name.as_str()) {
            names.push(&bar.name);
        }
    }
    let colour = |name: &str| {
        let place = names.iter().position(|other| *other == name).unwrap_or(0);
        PALETTE[place % PALETTE.len()]
    };
    let row = CHARACTER.1 + 8;
    let height: i32 = panels.iter().map(|panel| row * 2 + panel_height(panel)).sum();
    let mut figure = Figure::new(WIDTH, height + 2 * row + 2 * MARGIN);
    figure.text(MARGIN, MARGIN, title, Anchor::Start);
    figure.text(MARGIN, MARGIN + row, note, Anchor::Start);
    let mut y = MARGIN + 2 * row;
    for panel in panels {
        y += row / 2;
        figure.text(MARGIN, y + row / 2, &panel.title, Anchor::Start);
        y += row;
        let values = panel.groups.iter().flat_map(|group| &group.bars).map(|bar| bar.value.max);
        let most = values.fold(f64::MIN_POSITIVE, f64::max);
        let room = f64::from(WIDTH - MARGIN * 2 - NAMES - NUMBERS);
        let left = MARGIN + NAMES;
        let at = |value: f64| left + (value / most * room) as i32;
        let top = y;
        for group in &panel.groups {
            figure.text(MARGIN, y + BAR / 2, &group.title, Anchor::Start);
            y += BAR + 2;
            for bar in &group.bars {
                let middle = y + BAR / 2;
                figure.text(left - 8, middle, &bar.name, Anchor::End);
                figure.rectangle(left, y + 2, at(bar.value.median) - left, BAR - 4, colour(&bar.name));
                figure.line((at(bar.value.min), middle), (at(bar.value.max), middle), INK);
                for end in [bar.value.min, bar.value.max] {
                    figure.line((at(end), middle - 4), (at(end), middle + 4), INK);
                }
                figure.text(at(bar.value.max) + 8, middle, short(bar.value.median), Anchor::Start);
                y += BAR;
            }
            y += BAR / 2;
        }
        figure.line((left, top), (left, y - BAR / 2), INK);
        y += row / 2;
    }
    figure
}

fn panel_height(panel: &Panel) -> i32 {
    let group = |group: &Group| BAR + 2 + BAR * i32::try_from(group.bars.len()).unwrap_or(0) + BAR / 2;
    panel.groups.iter().map(group).sum()
}

/// All values of one thing.
#[derive(Clone, Debug)]
pub(crate) struct Distribution {
    pub(crate) name: String,
    pub(crate) values: Vec<f64>,
}

/// How many of the values (upwards, percent) are at most so great (to the right, in `unit`).
pub(crate) fn distribution(title: &str, unit: &str, all: &[Distribution]) -> Figure {
    const HEIGHT: i32 = 460;
    const TICKS: i32 = 5;
    let row = CHARACTER.1 + 6;
    let mut figure = Figure::new(WIDTH, HEIGHT + row * i32::try_from(all.len()).unwrap_or(0));
    figure.text(MARGIN, MARGIN, title, Anchor::Start);
    let (left, right) = (MARGIN + 70, WIDTH - MARGIN - 40);
    let (top, bottom) = (MARGIN + 2 * row, HEIGHT - MARGIN - 2 * row);
    let most = all.iter().flat_map(|one| &one.values).copied().fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| left + (value / most * f64::from(right - left)) as i32;
    let y = |share: f64| bottom - (share * f64::from(bottom - top)) as i32;
    for tick in 0..=TICKS {
        let share = f64::from(tick) / f64::from(TICKS);
        figure.line((left, y(share)), (right, y(share)), FAINT);
        figure.text(left - 8, y(share), format!("{:.0} %", share * 100.0), Anchor::End);
        let value = share * most;
        figure.line((x(value), bottom), (x(value), bottom + 5), INK);
        figure.text(x(value) + CHARACTER.0 * 2, bottom + row, short(value), Anchor::End);
    }
    figure.line((left, bottom), (right, bottom), INK);
    figure.line((left, top), (left, bottom), INK);
    figure.text(right, bottom + 2 * row, unit, Anchor::End);
    for (place, one) in all.iter().enumerate() {
        let colour = PALETTE[place % PALETTE.len()];
        let mut sorted = one.values.clone();
        sorted.sort_by(f64::total_cmp);
        let mut last = (left, bottom);
        for (rank, value) in sorted.iter().enumerate() {
            let share = (rank + 1) as f64 / sorted.len() as f64;
            let here = (x(*value), y(share));
            figure.line(last, (here.0, last.1), colour);
            figure.line((here.0, last.1), here, colour);
            last = here;
        }
        let line = HEIGHT + row * i32::try_from(place).unwrap_or(0);
        figure.rectangle(left, line - 5, 20, 10, colour);
        figure.text(left + 30, line, format!("{} ({} values)", one.name, sorted.len()), Anchor::Start);
    }
    figure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_stay_inside_and_name_everything() {
        let bar = |name: &str, median| Bar {
            name: name.into(),
            value: Summary { median, min: median / 2.0, max: median * 2.0, count: 3 },
        };
        let group = Group { title: "TCP".into(), bars: vec![bar("podspan", 3.0), bar("other", 1.5)] };
        let panels = [Panel { title: "Gbit/s".into(), groups: vec![group.clone(), group] }];
        let figure = bars("a title", "a note", &panels);
        let svg = figure.svg();
        for text in ["a title", "a note", "Gbit/s", "podspan", "other", "3.00", "1.50"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(figure.png().unwrap().len() > 1000);
    }

    #[test]
    fn a_distribution_of_nothing_is_a_picture_all_the_same() {
        let none = Distribution { name: "none".into(), values: vec![] };
        let some = Distribution { name: "gap".into(), values: vec![40.0, 20.0, 300.0] };
        let svg = distribution("gaps", "ms", &[none, some]).svg();
        assert!(svg.contains("none (0 values)") && svg.contains("gap (3 values)") && svg.contains("100 %"));
    }
}
