"""The bill of materials of wheels, in CycloneDX: contents, licences, digests.

    python .ci/sbom.py wheelhouse/*.whl > sbom.cdx.json

Needs cyclonedx-python-lib[json-validation]. Lists every wheel, what it needs at run time, what
built it, and every library that was put into it and is no part of this project. The result is
checked against CycloneDX's schema. With SOURCE_DATE_EPOCH the same wheels have the same bill.
"""

import hashlib
import os
import re
import sys
import tomllib
import zipfile
from datetime import UTC, datetime
from email.parser import HeaderParser
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

BUNDLED = {"libgomp": "GPL-3.0-or-later WITH GCC-exception-3.1"}
"""The licences of the libraries that a wheel may contain, by the beginning of their names."""
COMPILED = re.compile(r"\.(so|pyd|dll|dylib)(\.\d+)*$")


def digest(content: bytes) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=hashlib.sha256(content).hexdigest())


def licensed(text: str) -> list[LicenseExpression]:
    return [LicenseExpression(value=text)]


def foreign(file: zipfile.ZipFile, wheel: str) -> list[Component]:
    """The libraries in a wheel that are no modules of this package. Raises SystemExit for one whose
    licence is not known here."""
    found = []
    for entry in file.namelist():
        folder, _, name = entry.rpartition("/")
        if not COMPILED.search(name) or (
            folder.split("/")[0] == "steepest" and "/.libs" not in entry
        ):
            continue
        kind = next((kind for kind in BUNDLED if name.startswith(kind)), None)
        if kind is None:
            sys.exit(f"{entry}: a library whose licence .ci/sbom.py does not know")
        content = file.read(entry)
        found.append(
            Component(
                name=name,
                type=ComponentType.LIBRARY,
                bom_ref=f"{wheel}/{entry}",
                licenses=licensed(BUNDLED[kind]),
                hashes=[digest(content)],
            )
        )
    return found


def needed(requirement: str, scope: ComponentScope) -> Component:
    name = re.match(r"[\w.-]+", requirement)[0]
    return Component(
        name=name,
        description=f"any version that satisfies {requirement}",
        type=ComponentType.LIBRARY,
        scope=scope,
        bom_ref=f"{scope.value}-{requirement}",
        purl=PackageURL("pypi", None, name.lower()),
    )


def bill(wheels: list[Path]) -> Bom:
    made = Bom()
    ours = []
    for path in sorted(wheels):
        with zipfile.ZipFile(path) as file:
            [where] = [x for x in file.namelist() if x.endswith(".dist-info/METADATA")]
            about = HeaderParser().parsestr(file.read(where).decode())
            parts = foreign(file, path.name)
        ours.append(
            Component(
                name=path.name,
                version=about["Version"],
                type=ComponentType.LIBRARY,
                bom_ref=path.name,
                licenses=licensed(about["License-Expression"]),
                hashes=[digest(path.read_bytes())],
                components=parts,
                purl=PackageURL(
                    "pypi", None, about["Name"], about["Version"], {"file_name": path.name}
                ),
            )
        )
    required = [x for x in about.get_all("Requires-Dist", []) if "extra ==" not in x]
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    others = [needed(x, ComponentScope.REQUIRED) for x in required]
    others += [needed(x, ComponentScope.EXCLUDED) for x in project["build-system"]["requires"]]
    made.metadata.component = Component(
        name=about["Name"],
        version=about["Version"],
        type=ComponentType.LIBRARY,
        bom_ref="steepest",
        licenses=licensed(about["License-Expression"]),
    )
    for component in (*ours, *others):
        made.components.add(component)
    made.register_dependency(made.metadata.component, [*ours, *others])
    made.serial_number = uuid5(NAMESPACE_URL, "".join(str(x.hashes) for x in ours))
    now = os.environ.get("SOURCE_DATE_EPOCH")
    made.metadata.timestamp = datetime.fromtimestamp(int(now), UTC) if now else datetime.now(UTC)
    return made


def main(wheels: list[str]) -> int:
    text = JsonV1Dot6(bill([Path(x) for x in wheels])).output_as_string(indent=2)
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        sys.exit(f"the bill does not fit CycloneDX's schema: {wrong}")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
