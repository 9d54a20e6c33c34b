"""Which rooms of `cai` stand on which floor."""

FLOORS = {
    0: "errors ids stats",
    1: "records/",
    2: "core/",
    3: "recipe/ constitution/",
    4: "models/",
    5: "data/ generate/",
    6: "labels/ train/",
    7: "judge/",
    8: "session",
    9: "evaluate/",
    10: "evaluate/audit/",
    11: "report/ workbench/",
    12: "pipeline/",
    13: "studio/",
    14: "cli/",
    15: "__main__",
}
"""Rooms by floor; a room with a slash is a folder, which may lie in another one. The loose modules of one floor count as one folder."""
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}
