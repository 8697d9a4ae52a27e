"""A comparison as JUnit XML, which CI systems show as tests: a suite per variant, a test per finding."""

from __future__ import annotations

from itertools import groupby
from xml.etree import ElementTree as Xml

from harness.analysis.regression.findings import UNDECIDED, Finding, Regression
from harness.report.comparison import words
from harness.report.escape import xml


def junit(found: Regression) -> str:
    """A failed gate is a failure, one that could not be evaluated is an error; findings without a gate are skipped."""
    root = Xml.Element("testsuites", name="qharness compare")
    ordered = sorted(found.findings, key=lambda each: each.variant)
    for name, members in groupby(ordered, key=lambda each: each.variant):
        _suite(root, name, list(members))
    if found.unmeasured:
        suite = Xml.SubElement(root, "testsuite", name="gates", tests=str(len(found.unmeasured)))
        for name in found.unmeasured:
            case = Xml.SubElement(suite, "testcase", classname="gates", name=xml(name))
            Xml.SubElement(case, "error", message="neither side measures it", type="incomparable")
        _count(suite)
    if found.missing:
        suite = Xml.SubElement(root, "testsuite", name="records")
        for number, each in enumerate(found.missing, 1):
            case = Xml.SubElement(suite, "testcase", classname="records", name=f"readable {number}")
            Xml.SubElement(case, "error", message=xml(each.remark), type="inconclusive")
        _count(suite)
    doubts = list(words.doubts(found))
    if doubts:
        suite = Xml.SubElement(root, "testsuite", name="baselines")
        for number, doubt in enumerate(doubts, 1):
            case = Xml.SubElement(suite, "testcase", classname="baselines", name=f"plausible {number}")
            Xml.SubElement(case, "skipped", message=xml(doubt))
        _count(suite)
    _count(root)
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _suite(root: Xml.Element, name: str, findings: list[Finding]) -> None:
    suite = Xml.SubElement(root, "testsuite", name=xml(name))
    for finding in findings:
        case = Xml.SubElement(suite, "testcase", classname=xml(name), name=xml(words.subject(finding)))
        reasons = xml(words.why(finding))
        figures = xml(f"{words.figures(finding)}; change {words.change(finding)}; threshold {words.limit(finding)}")
        kind = _kind(finding)
        if kind == "skipped":
            Xml.SubElement(case, "skipped", message=f"{finding.verdict}: {reasons}")
        elif kind:
            Xml.SubElement(case, kind, message=reasons, type=finding.verdict).text = figures
        else:
            Xml.SubElement(case, "system-out").text = f"{finding.verdict}: {figures}"
    _count(suite)


def _kind(finding: Finding) -> str | None:
    if finding.verdict == "regressed":
        return "failure" if finding.gated else "skipped"
    if finding.verdict in UNDECIDED:
        return "error" if finding.gated else "skipped"
    return None


def _count(element: Xml.Element) -> None:
    element.set("tests", str(len(element.findall(".//testcase"))))
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        element.set(attribute, str(len(element.findall(f".//{kind}"))))
