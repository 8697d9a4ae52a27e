"""The tools that are offered, each with templates of questions whose right calls are known exactly.

Written for this project (CC0). A template asks for all that its call needs; ``{name}`` stands for a parameter's value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Schema = dict[str, Any]
Values = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    ``properties`` are the JSON Schemas of its parameters; those without a ``default`` are required. ``asks`` are
    templates of requests, ``values`` what may stand for each parameter in them, and ``fixed`` the arguments that all of
    them imply without a placeholder.
    """

    name: str
    description: str
    properties: Mapping[str, Schema]
    asks: Sequence[str]
    values: Values
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> Schema:
        """The JSON Schema of its arguments."""
        return {
            "type": "object",
            "properties": dict(self.properties),
            "required": [name for name, schema in self.properties.items() if "default" not in schema],
            "additionalProperties": False,
        }

    @property
    def declared(self) -> dict[str, Any]:
        """As chat templates take it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


def text(description: str, **more: Any) -> Schema:
    return {"type": "string", "description": description, **more}


def whole(description: str, **more: Any) -> Schema:
    return {"type": "integer", "description": description, **more}


def number(description: str, **more: Any) -> Schema:
    return {"type": "number", "description": description, **more}


def one_of(description: str, *names: str, **more: Any) -> Schema:
    return {"type": "string", "enum": list(names), "description": description, **more}


def many(description: str) -> Schema:
    return {"type": "array", "items": {"type": "string"}, "minItems": 1, "description": description}


CITIES = ("Lisbon", "Oslo", "Nairobi", "Toronto", "Kyoto", "Santiago", "Cairo", "Hanoi")
PEOPLE = ("Ada Lindqvist", "Bruno Okafor", "Chen Wei", "Dora Pinto", "Emil Novak", "Farah Haddad")
DATES = ("2031-03-14", "2031-06-02", "2031-09-30", "2031-11-21", "2032-01-08")
TIMES = ("08:15", "09:30", "13:00", "16:45", "19:20")
AIRPORTS = ("LIS", "OSL", "NBO", "YYZ", "KIX", "SCL", "CAI", "HAN")

TOOLS: tuple[Tool, ...] = (
    Tool(
        "get_weather",
        "Current weather at a place",
        {"city": text("Name of the city"), "unit": one_of("Unit of temperature", "celsius", "fahrenheit")},
        ("What is the weather in {city} right now, in degrees {unit}?", "Tell me how warm it is in {city} ({unit})."),
        {"city": CITIES, "unit": ("celsius", "fahrenheit")},
    ),
    Tool(
        "get_forecast",
        "Weather forecast for the coming days",
        {"city": text("Name of the city"), "days": whole("Number of days", minimum=1, maximum=14)},
        (
            "Give me the forecast for {city} for the next {days} days.",
            "How will the weather in {city} be in the coming {days} days?",
        ),
        {"city": CITIES, "days": (2, 3, 5, 7, 10)},
    ),
    Tool(
        "convert_currency",
        "Converts an amount of money at today's rate",
        {
            "amount": number("Amount to convert"),
            "source": text("Currency code to convert from"),
            "target": text("Currency code to convert to"),
        },
        ("How much are {amount} {source} in {target} today?", "Convert {amount} {source} to {target}."),
        {"amount": (120, 75.5, 1999.99, 40), "source": ("EUR", "USD", "KES"), "target": ("JPY", "NOK", "CAD")},
    ),
    Tool(
        "set_timer",
        "Starts a timer",
        {"minutes": number("Length in minutes"), "label": text("What the timer is for")},
        ("Set a timer of {minutes} minutes for the {label}.", "Start a {minutes}-minute timer and call it {label}."),
        {"minutes": (5, 12, 45, 7.5), "label": ("rice", "bread", "laundry", "tea")},
    ),
    Tool(
        "set_alarm",
        "Sets an alarm for a time of day",
        {
            "time": text("Time of day as HH:MM, 24 hours"),
            "repeat_daily": {"type": "boolean", "description": "Whether it rings every day", "default": False},
        },
        ("Wake me at {time}, once.", "I need an alarm at {time} today only."),
        {"time": TIMES},
    ),
    Tool(
        "create_event",
        "Adds an event to the calendar",
        {
            "title": text("Title of the event"),
            "date": text("Date as YYYY-MM-DD"),
            "start": text("Start as HH:MM"),
            "minutes": whole("Length in minutes", minimum=5),
        },
        (
            "Put '{title}' into my calendar on {date} at {start}, for {minutes} minutes.",
            "Schedule {title} for {date}, starting at {start} and taking {minutes} minutes.",
        ),
        {
            "title": ("budget review", "choir practice", "dentist", "project kick-off"),
            "date": DATES,
            "start": TIMES,
            "minutes": (30, 45, 60, 90),
        },
    ),
    Tool(
        "cancel_event",
        "Removes an event from the calendar",
        {"title": text("Title of the event"), "date": text("Date as YYYY-MM-DD")},
        ("Cancel '{title}' on {date}.", "Please take {title} out of my calendar for {date}."),
        {"title": ("budget review", "choir practice", "dentist", "project kick-off"), "date": DATES},
    ),
    Tool(
        "send_email",
        "Sends an e-mail",
        {
            "to": many("Addresses of the recipients"),
            "subject": text("Subject line"),
            "body": text("Text of the message"),
        },
        (
            "E-mail {to} with the subject '{subject}' and the text '{body}'",
            "Send a mail to {to}. Subject: '{subject}'. Body: '{body}'",
        ),
        {
            "to": (
                ["ada@example.org"],
                ["bruno@example.org", "chen@example.org"],
                ["dora@example.org", "emil@example.org"],
            ),
            "subject": ("Keys", "Friday's lunch", "New draft"),
            "body": ("They are under the mat.", "I will be ten minutes late.", "Please read it by Monday."),
        },
    ),
    Tool(
        "send_text_message",
        "Sends a text message to a contact",
        {"contact": text("Name of the contact"), "message": text("Text of the message")},
        ("Text {contact}: '{message}'", "Send {contact} the text message '{message}'"),
        {"contact": PEOPLE, "message": ("On my way", "Running late, start without me", "Happy birthday!")},
    ),
    Tool(
        "translate",
        "Translates a text",
        {"text": text("Text to translate"), "language": text("Language to translate into, in English")},
        ("Translate '{text}' into {language}.", "How do you say '{text}' in {language}?"),
        {
            "text": ("Where is the station?", "The soup is cold.", "See you tomorrow."),
            "language": ("Portuguese", "Swahili", "Norwegian", "Vietnamese"),
        },
    ),
    Tool(
        "search_flights",
        "Finds flights between two airports",
        {
            "origin": text("IATA code of departure"),
            "destination": text("IATA code of arrival"),
            "date": text("Date as YYYY-MM-DD"),
            "passengers": whole("Number of passengers", minimum=1, default=1),
        },
        (
            "Find flights from {origin} to {destination} on {date} for {passengers} passengers.",
            "{passengers} people want to fly from {origin} to {destination} on {date}; what flights are there?",
        ),
        {"origin": AIRPORTS[:4], "destination": AIRPORTS[4:], "date": DATES, "passengers": (2, 3, 5)},
    ),
    Tool(
        "book_hotel",
        "Books a hotel room",
        {
            "city": text("City of the hotel"),
            "check_in": text("Date as YYYY-MM-DD"),
            "nights": whole("Number of nights", minimum=1),
            "breakfast": {"type": "boolean", "description": "Whether breakfast is included"},
        },
        (
            "Book me a hotel room in {city} from {check_in} for {nights} nights, with breakfast.",
            "I want to stay {nights} nights in {city} from {check_in} on, breakfast included. Book it.",
        ),
        {"city": CITIES, "check_in": DATES, "nights": (2, 3, 6)},
        {"breakfast": True},
    ),
    Tool(
        "find_restaurants",
        "Finds restaurants in a city",
        {
            "city": text("Name of the city"),
            "cuisine": text("Kind of kitchen"),
            "max_price": one_of("Highest price level", "low", "medium", "high"),
        },
        (
            "Which {cuisine} restaurants in {city} are there at a {max_price} price level at most?",
            "Find me {cuisine} food in {city}, price level no more than {max_price}.",
        ),
        {"city": CITIES, "cuisine": ("Ethiopian", "Korean", "vegetarian", "Lebanese"), "max_price": ("low", "medium")},
    ),
    Tool(
        "reserve_table",
        "Reserves a table at a restaurant",
        {
            "restaurant": text("Name of the restaurant"),
            "date": text("Date as YYYY-MM-DD"),
            "time": text("Time as HH:MM"),
            "guests": whole("Number of guests", minimum=1),
        },
        (
            "Reserve a table for {guests} at {restaurant} on {date} at {time}.",
            "We are {guests} and would like to eat at {restaurant} on {date}, {time}. Reserve, please.",
        ),
        {"restaurant": ("Blue Heron", "Casa Nova", "Old Mill"), "date": DATES, "time": TIMES, "guests": (2, 4, 6)},
    ),
    Tool(
        "get_directions",
        "Route between two places",
        {
            "start": text("Where the route begins"),
            "end": text("Where it ends"),
            "mode": one_of("Means of transport", "walking", "cycling", "driving", "transit"),
        },
        ("How do I get from {start} to {end} by {mode}?", "Give me the {mode} route from {start} to {end}."),
        {
            "start": ("Market Square", "Harbour Street 12", "Central Station"),
            "end": ("Mill Lane 3", "Castle Hill", "North Pier"),
            "mode": ("walking", "cycling", "driving"),
        },
    ),
    Tool(
        "calculate_distance",
        "Straight distance between two points on the globe, in kilometres",
        {
            "latitude_1": number("Latitude of the first point"),
            "longitude_1": number("Longitude of the first point"),
            "latitude_2": number("Latitude of the second point"),
            "longitude_2": number("Longitude of the second point"),
        },
        ("How far is {latitude_1}, {longitude_1} (latitude, longitude) from {latitude_2}, {longitude_2}?",),
        {
            "latitude_1": (38.72, -1.29, 59.91),
            "longitude_1": (-9.14, 36.82, 10.75),
            "latitude_2": (43.65, 35.01),
            "longitude_2": (-79.38, 135.77),
        },
    ),
    Tool(
        "convert_units",
        "Converts a measured value to another unit",
        {
            "value": number("Value to convert"),
            "from_unit": text("Unit of the value"),
            "to_unit": text("Unit to convert to"),
        },
        ("Convert {value} {from_unit} to {to_unit}.", "What are {value} {from_unit} in {to_unit}?"),
        {
            "value": (12, 3.5, 250, 0.75),
            "from_unit": ("miles", "leagues", "yards"),
            "to_unit": ("kilometres", "metres"),
        },
    ),
    Tool(
        "get_stock_price",
        "Price of a share",
        {
            "symbol": text("Ticker symbol"),
            "date": text("Date as YYYY-MM-DD; the latest price if left out", default="latest"),
        },
        ("What did a share of {symbol} cost on {date}?", "Price of {symbol} on {date}, please."),
        {"symbol": ("ACME", "ZETA", "QUIL", "NORD"), "date": DATES},
    ),
    Tool(
        "calculate_loan",
        "Monthly payment of a loan",
        {
            "principal": number("Amount borrowed"),
            "annual_rate": number("Interest per year in percent"),
            "years": whole("Years to pay back", minimum=1),
        },
        (
            "What do I pay each month for a loan of {principal} at {annual_rate} percent a year over {years} years?",
            "Work out the monthly payment: {principal} borrowed, {annual_rate}% interest a year, {years} years.",
        ),
        {"principal": (12000, 250000, 8500), "annual_rate": (3.2, 4.75, 6), "years": (5, 10, 25)},
    ),
    Tool(
        "split_bill",
        "Divides a bill among people, with a tip",
        {
            "total": number("Amount of the bill"),
            "people": whole("Number of people", minimum=1),
            "tip_percent": number("Tip in percent"),
        },
        (
            "Split a bill of {total} among {people} people with a tip of {tip_percent} percent.",
            "{people} of us share a bill of {total}; we tip {tip_percent}%. What does each pay?",
        ),
        {"total": (84.6, 132, 57.25), "people": (3, 4, 6), "tip_percent": (5, 10, 12.5)},
    ),
    Tool(
        "transfer_money",
        "Transfers money between accounts",
        {
            "from_account": text("Account to take from"),
            "to_account": text("Account to pay into"),
            "amount": number("Amount"),
        },
        (
            "Move {amount} from {from_account} to {to_account}.",
            "Transfer {amount} out of {from_account} into {to_account}.",
        ),
        {
            "from_account": ("savings", "checking"),
            "to_account": ("holiday", "rent", "household"),
            "amount": (50, 320.5, 1000),
        },
    ),
    Tool(
        "search_products",
        "Searches a shop's products",
        {
            "query": text("What to look for"),
            "max_price": number("Highest price"),
            "in_stock": {"type": "boolean", "description": "Only what is in stock", "default": True},
        },
        ("Look for a {query} that costs at most {max_price}.", "Search the shop for {query} under or at {max_price}."),
        {"query": ("desk lamp", "rain jacket", "cast iron pan", "bicycle pump"), "max_price": (25, 79.9, 150)},
    ),
    Tool(
        "track_parcel",
        "Where a parcel is",
        {"tracking_number": text("Number of the parcel")},
        ("Where is my parcel {tracking_number}?", "Track the parcel with the number {tracking_number}."),
        {"tracking_number": ("QX48210073", "LM99310442", "TT10055528", "ZB77120096")},
    ),
    Tool(
        "create_invoice",
        "Writes an invoice",
        {
            "customer": text("Name of the customer"),
            "items": many("What is charged for"),
            "total": number("Sum to be paid"),
        },
        (
            "Write an invoice for {customer} over {total} for {items}.",
            "{customer} owes {total} for {items}. Make an invoice.",
        ),
        {
            "customer": PEOPLE,
            "items": (["garden design", "planting"], ["two chairs"], ["repair", "delivery"]),
            "total": (420, 199.5, 1250),
        },
    ),
    Tool(
        "play_music",
        "Plays music",
        {
            "artist": text("Name of the artist"),
            "shuffle": {"type": "boolean", "description": "Whether the order is random"},
            "volume": whole("Volume from 0 to 100", minimum=0, maximum=100),
        },
        ("Play {artist} in random order at volume {volume}.", "Shuffle songs by {artist}, volume {volume}."),
        {"artist": ("Paper Foxes", "Mira Sol", "Northern Line"), "volume": (20, 45, 70)},
        {"shuffle": True},
    ),
    Tool(
        "add_to_playlist",
        "Adds a song to a playlist",
        {"song": text("Title of the song"), "playlist": text("Name of the playlist")},
        ("Add '{song}' to my playlist {playlist}.", "Put the song '{song}' on the list {playlist}."),
        {"song": ("Slow River", "Half a Moon", "Ten Past Four"), "playlist": ("Morning", "Running", "Quiet hours")},
    ),
    Tool(
        "set_thermostat",
        "Sets the heating of a room",
        {
            "room": text("Name of the room"),
            "temperature": number("Temperature in degrees celsius", minimum=5, maximum=30),
        },
        ("Heat the {room} to {temperature} degrees.", "Set the thermostat in the {room} to {temperature}."),
        {"room": ("kitchen", "bedroom", "study", "hall"), "temperature": (18, 19.5, 21, 22.5)},
    ),
    Tool(
        "switch_light",
        "Switches the lights of a room",
        {"room": text("Name of the room"), "state": one_of("On or off", "on", "off")},
        ("Turn the lights in the {room} {state}.", "Lights {state} in the {room}, please."),
        {"room": ("kitchen", "bedroom", "study", "hall"), "state": ("on", "off")},
    ),
    Tool(
        "lock_door",
        "Locks or unlocks a door",
        {"door": text("Which door"), "locked": {"type": "boolean", "description": "Whether it shall be locked"}},
        ("Lock the {door} door.", "Make sure that the {door} door is locked."),
        {"door": ("front", "back", "garage", "cellar")},
        {"locked": True},
    ),
    Tool(
        "get_recipe",
        "Finds a recipe",
        {
            "dish": text("Name of the dish"),
            "servings": whole("Number of servings", minimum=1),
            "avoid": many("Ingredients to leave out"),
        },
        (
            "Find a recipe of {dish} for {servings} without {avoid}.",
            "I cook {dish} for {servings} people, and nobody may have {avoid}. A recipe, please.",
        ),
        {
            "dish": ("lentil soup", "lasagne", "fried rice"),
            "servings": (2, 4, 8),
            "avoid": (["nuts"], ["milk", "eggs"], ["garlic", "onions"]),
        },
    ),
    Tool(
        "log_workout",
        "Writes down a workout",
        {
            "activity": text("What was done"),
            "minutes": whole("Length in minutes"),
            "distance_km": number("Distance in kilometres"),
        },
        (
            "Log {minutes} minutes of {activity}, {distance_km} kilometres.",
            "I did {distance_km} km of {activity} in {minutes} minutes; write it down.",
        ),
        {"activity": ("running", "rowing", "cycling"), "minutes": (25, 40, 75), "distance_km": (5, 8.4, 21.1)},
    ),
    Tool(
        "calculate_bmi",
        "Body mass index",
        {"weight_kg": number("Weight in kilograms"), "height_cm": number("Height in centimetres")},
        (
            "What is the body mass index at {weight_kg} kilograms and {height_cm} centimetres?",
            "BMI for a height of {height_cm} cm and a weight of {weight_kg} kg?",
        ),
        {"weight_kg": (61.5, 74, 90), "height_cm": (158, 171, 186)},
    ),
    Tool(
        "book_appointment",
        "Books an appointment with a doctor",
        {
            "doctor": text("Surname of the doctor, without a title"),
            "date": text("Date as YYYY-MM-DD"),
            "time": text("Time as HH:MM"),
            "reason": text("Reason of the visit"),
        },
        ("Book an appointment with Dr. {doctor} on {date} at {time}; the reason is a {reason}.",),
        {
            "doctor": ("Haddad", "Novak", "Lindqvist"),
            "date": DATES,
            "time": TIMES,
            "reason": ("check-up", "vaccination", "sore knee"),
        },
    ),
    Tool(
        "find_books",
        "Searches a library",
        {
            "author": text("Name of the author"),
            "subject": text("Subject of the book"),
            "year_from": whole("Not older than this year"),
        },
        (
            "Which books on {subject} by {author} since {year_from} does the library have?",
            "Search the library: author {author}, subject {subject}, from {year_from} on.",
        ),
        {"author": PEOPLE, "subject": ("beekeeping", "bridges", "tides"), "year_from": (1987, 2004, 2015)},
    ),
    Tool(
        "define_word",
        "Looks a word up in a dictionary",
        {"word": text("Word to look up"), "language": text("Language of the word, in English", default="English")},
        ("What does the {language} word '{word}' mean?", "Look up '{word}' in the {language} dictionary."),
        {"word": ("gabarit", "saudade", "lagom"), "language": ("French", "Portuguese", "Swedish")},
    ),
    Tool(
        "query_database",
        "Counts rows of a table that meet a condition",
        {
            "table": text("Name of the table"),
            "column": text("Column to look at"),
            "operator": one_of("Comparison", "=", "<", ">"),
            "value": number("Value to compare with"),
        },
        (
            "How many rows of the table {table} have {column} {operator} {value}?",
            "Count the rows in {table} where {column} {operator} {value}.",
        ),
        {
            "table": ("orders", "customers", "visits"),
            "column": ("age", "total", "items"),
            "operator": ("=", "<", ">"),
            "value": (3, 18, 99.5),
        },
    ),
    Tool(
        "create_ticket",
        "Opens a ticket in the issue tracker",
        {
            "title": text("Title of the ticket"),
            "priority": one_of("How urgent it is", "low", "normal", "high", "urgent"),
            "labels": many("Labels of the ticket"),
        },
        (
            "Open a ticket '{title}' with {priority} priority and the labels {labels}.",
            "File '{title}' in the tracker, priority {priority}, labelled {labels}.",
        ),
        {
            "title": ("Login fails on phones", "Export is slow", "Typo on the start page"),
            "priority": ("low", "high", "urgent"),
            "labels": (["bug"], ["bug", "mobile"], ["docs"]),
        },
    ),
    Tool(
        "run_backup",
        "Backs a folder up",
        {
            "path": text("Folder to back up"),
            "destination": text("Where to keep the copy"),
            "compress": {"type": "boolean", "description": "Whether to compress it"},
        },
        (
            "Back up {path} to {destination}, uncompressed.",
            "Copy the folder {path} to {destination} as a backup without compression.",
        ),
        {"path": ("/home/ada/photos", "/srv/mail", "/etc"), "destination": ("nas-1", "vault-2")},
        {"compress": False},
    ),
    Tool(
        "resize_image",
        "Changes the size of an image",
        {
            "file": text("Name of the image file"),
            "width": whole("New width in pixels", minimum=1),
            "height": whole("New height in pixels", minimum=1),
        },
        ("Resize {file} to {width} by {height} pixels.", "Make {file} {width} pixels wide and {height} pixels high."),
        {"file": ("cover.png", "team.jpg", "map.webp"), "width": (640, 800, 1920), "height": (360, 480, 1080)},
    ),
    Tool(
        "restart_service",
        "Restarts a service on a server",
        {
            "service": text("Name of the service"),
            "host": text("Name of the server"),
            "delay_s": whole("Seconds to wait before", minimum=0, default=0),
        },
        (
            "Restart {service} on {host} in {delay_s} seconds.",
            "Wait {delay_s} seconds, then restart {service} on {host}.",
        ),
        {"service": ("nginx", "postgres", "mailer"), "host": ("web-03", "db-01", "edge-07"), "delay_s": (10, 30, 120)},
    ),
    Tool(
        "generate_password",
        "Makes a password",
        {
            "length": whole("Number of characters", minimum=8, maximum=128),
            "symbols": {"type": "boolean", "description": "Whether it may have symbols"},
        },
        (
            "Make me a password of {length} characters without symbols.",
            "I need a {length}-character password, no symbols.",
        ),
        {"length": (12, 16, 24, 32)},
        {"symbols": False},
    ),
    Tool(
        "schedule_social_post",
        "Schedules a post",
        {
            "network": text("Name of the network"),
            "content": text("Text of the post"),
            "date": text("Date as YYYY-MM-DD"),
            "tags": many("Tags without the hash sign"),
        },
        (
            "On {date} post '{content}' on {network} with the tags {tags}.",
            "Schedule a post on {network} for {date}: '{content}', tags {tags}.",
        ),
        {
            "network": ("Perch", "Quillnet"),
            "content": ("We are open again.", "Our new catalogue is out."),
            "date": DATES,
            "tags": (["spring"], ["books", "reading"]),
        },
    ),
    Tool(
        "plan_watering",
        "Sets when a part of the garden is watered",
        {
            "zone": text("Part of the garden"),
            "days": {
                "type": "array",
                "items": {"type": "string", "enum": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]},
                "minItems": 1,
                "description": "Days of the week",
            },
            "litres": number("Litres of water each time"),
        },
        ("Water the {zone} on {days}, {litres} litres each time.", "The {zone} gets {litres} litres on {days}."),
        {
            "zone": ("roses", "lawn", "vegetable bed"),
            "days": (["mon", "thu"], ["sat"], ["tue", "fri", "sun"]),
            "litres": (15, 7.5, 40),
        },
    ),
    Tool(
        "get_exchange_history",
        "Exchange rates of a currency pair over a span of time",
        {
            "pair": {
                "type": "object",
                "properties": {"base": {"type": "string"}, "quote": {"type": "string"}},
                "required": ["base", "quote"],
                "additionalProperties": False,
                "description": "The two currency codes",
            },
            "since": text("First date as YYYY-MM-DD"),
        },
        ("Show the exchange rates since {since} with {pair}.", "How has the rate moved since {since}, with {pair}?"),
        {"pair": ({"base": "EUR", "quote": "NOK"}, {"base": "USD", "quote": "KES"}), "since": DATES},
    ),
)
BY_NAME: Mapping[str, Tool] = {tool.name: tool for tool in TOOLS}
