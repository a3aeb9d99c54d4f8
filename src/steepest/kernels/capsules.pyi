RULE: tuple[str, str]
SURVEY: tuple[str, str, str]
TABLE: tuple[str, str]

def name(capsule: object) -> str | None: ...
