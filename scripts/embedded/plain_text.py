"""Plain English of our own: passages for perplexity and a question set without pictures. None of it is ever trained on."""

from __future__ import annotations

# question | right | wrong | wrong | wrong
QUESTIONS = """\
What is the capital of France?|Paris|Berlin|Madrid|Rome
What is the capital of Italy?|Rome|Paris|Athens|Vienna
What is the capital of Japan?|Tokyo|Beijing|Seoul|Bangkok
What is the capital of Germany?|Berlin|Munich|Paris|Vienna
What is the capital of Spain?|Madrid|Lisbon|Rome|Paris
What is the capital of England?|London|Dublin|Paris|Edinburgh
What is the capital of Russia?|Moscow|Kiev|Warsaw|Berlin
What is the capital of China?|Beijing|Tokyo|Shanghai|Seoul
What is the capital of Egypt?|Cairo|Tunis|Athens|Baghdad
What is the capital of Greece?|Athens|Rome|Cairo|Sofia
On which continent is Kenya?|Africa|Asia|Europe|Australia
On which continent is India?|Asia|Africa|Europe|Antarctica
On which continent is Brazil?|South America|Africa|Asia|Europe
On which continent is Germany?|Europe|Asia|Africa|South America
Which ocean lies between Europe and North America?|the Atlantic Ocean|the Pacific Ocean|the Indian Ocean|the Arctic Ocean
What is the largest ocean on Earth?|the Pacific Ocean|the Atlantic Ocean|the Indian Ocean|the Baltic Sea
Which planet do we live on?|Earth|Mars|Venus|Jupiter
Which planet is known as the red planet?|Mars|Venus|Saturn|Neptune
Which is the largest planet in the solar system?|Jupiter|Mars|Earth|Mercury
What does the Earth move around?|the Sun|the Moon|Mars|a comet
What does the Moon move around?|the Earth|Mars|Saturn|Venus
What gas do people need to breathe?|oxygen|helium|neon|methane
What gas do plants take in from the air?|carbon dioxide|helium|neon|chlorine
What is frozen water called?|ice|steam|sand|oil
What is water vapour called when water boils?|steam|ice|smoke|dust
At what time of day does the sun rise?|in the morning|at midnight|in the evening|at night
Which season is the coldest?|winter|summer|spring|autumn
Which season is the hottest?|summer|winter|spring|autumn
Which season comes after winter?|spring|summer|autumn|winter
What do bees make?|honey|milk|wool|silk
What do cows give people to drink?|milk|honey|juice|tea
What do sheep give people for clothes?|wool|honey|eggs|paper
What do hens lay?|eggs|milk|honey|bread
What is the young of a dog called?|a puppy|a kitten|a calf|a foal
What is the young of a cat called?|a kitten|a puppy|a lamb|a chick
What is the young of a cow called?|a calf|a puppy|a foal|a kitten
What animal says meow?|a cat|a dog|a cow|a horse
What animal barks?|a dog|a cat|a sheep|a fish
What animal is known for its long neck?|the giraffe|the pig|the cat|the mouse
What animal is known for its trunk?|the elephant|the horse|the sheep|the fox
What animal has black and white stripes?|the zebra|the lion|the camel|the goat
Where do fish live?|in water|in trees|in the sky|in deserts
What do birds use to fly?|wings|fins|wheels|hooves
What do fish use to breathe?|gills|lungs|ears|wings
Which body part is used to see?|the eyes|the ears|the nose|the knees
Which body part is used to hear?|the ears|the eyes|the hands|the feet
Which body part is used to smell?|the nose|the ears|the elbows|the knees
Which organ pumps blood through the body?|the heart|the stomach|the skin|the liver
Which organ do people use to think?|the brain|the heart|the stomach|the lungs
Which organ digests food?|the stomach|the heart|the brain|the lungs
What do people wear on their feet?|shoes|gloves|hats|scarves
What do people wear on their hands?|gloves|shoes|hats|socks
What do people wear on their head?|a hat|a shoe|a glove|a belt
What is used to cut paper?|scissors|a spoon|a pillow|a cup
What is used to write on paper?|a pen|a spoon|a hammer|a shoe
What is used to hit a nail?|a hammer|a pen|a pillow|a spoon
What is used to eat soup?|a spoon|a knife|a hammer|a pen
What is used to tell the time?|a clock|a spoon|a hammer|a shoe
What is used to measure temperature?|a thermometer|a ruler|a clock|a scale
What is used to measure length?|a ruler|a thermometer|a clock|a scale
What is used to see stars far away?|a telescope|a microscope|a hammer|a mirror
What is used to look at very small things?|a microscope|a telescope|a hammer|a clock
Where do people borrow books?|at a library|at a bakery|at a garage|at a farm
Where do people buy bread?|at a bakery|at a library|at a bank|at a museum
Where do sick people go to be treated?|to a hospital|to a museum|to a bakery|to a library
Where do aeroplanes land?|at an airport|at a harbour|at a station|at a library
Where do trains stop?|at a station|at an airport|at a harbour|at a bakery
Where do ships stop?|in a harbour|at an airport|at a station|in a library
Who teaches children at school?|a teacher|a pilot|a baker|a sailor
Who flies an aeroplane?|a pilot|a baker|a teacher|a farmer
Who grows crops on a farm?|a farmer|a pilot|a lawyer|a sailor
Who bakes bread?|a baker|a pilot|a dentist|a sailor
Who puts out fires?|a firefighter|a baker|a teacher|a dentist
Who looks after people's teeth?|a dentist|a pilot|a baker|a farmer
What is the opposite of hot?|cold|warm|red|fast
What is the opposite of big?|small|large|green|slow
What is the opposite of up?|down|over|left|blue
What is the opposite of day?|night|noon|week|year
What is the opposite of fast?|slow|quick|tall|wet
What is the opposite of happy?|sad|glad|tall|early
What is the opposite of wet?|dry|damp|tall|old
What is the opposite of open?|closed|wide|tall|warm
What is the opposite of young?|old|new|short|warm
What is the opposite of light?|dark|bright|quick|soft
What colour is the sky on a clear day?|blue|green|purple|brown
What colour is grass?|green|blue|red|purple
What colour is snow?|white|black|red|green
What colour is blood?|red|blue|green|yellow
What colour is a ripe banana?|yellow|blue|purple|black
What colour is coal?|black|white|yellow|pink
What do you get when you mix blue and yellow?|green|red|black|white
What language do most people in France speak?|French|German|Spanish|Dutch
What language do most people in Spain speak?|Spanish|French|Italian|Polish
What language do most people in Brazil speak?|Portuguese|French|German|Russian
What is bread made from?|flour|sand|glass|wool
What is wine made from?|grapes|apples|potatoes|flour
What is cheese made from?|milk|grapes|flour|sugar
What is paper made from?|wood|glass|iron|wool
What are windows made of?|glass|wood|bread|wool
What are books made of?|paper|glass|iron|bread
What is the first month of the year?|January|March|July|December
What is the last month of the year?|December|January|June|October
Which day comes after Monday?|Tuesday|Sunday|Friday|Thursday
Which day comes before Sunday?|Saturday|Monday|Tuesday|Thursday
Which meal do people eat in the morning?|breakfast|dinner|supper|lunch
What shines in the sky at night?|the moon|the sun|a rainbow|the ground
What falls from the clouds when it rains?|water|sand|leaves|stones
What appears in the sky after rain when the sun shines?|a rainbow|a road|a river|a mountain
Who wrote Romeo and Juliet?|William Shakespeare|Isaac Newton|Albert Einstein|Charles Darwin
Who developed the theory of relativity?|Albert Einstein|William Shakespeare|Mozart|Napoleon
Who is known for the theory of evolution?|Charles Darwin|Albert Einstein|Beethoven|Shakespeare
What force pulls things toward the ground?|gravity|friction|magnetism|electricity
What is the main language of computers made of?|code|paint|music|wood
What do you call a person who writes books?|an author|a plumber|a pilot|a baker
What do you call a person who paints pictures?|an artist|a plumber|a pilot|a lawyer
What do you call a place where animals are kept for visitors?|a zoo|a bank|a school|a church
What do you call the child of a king?|a prince|a farmer|a baker|a soldier
What do you call the father of your father?|your grandfather|your uncle|your cousin|your brother
What do you call the sister of your mother?|your aunt|your cousin|your niece|your daughter
What do you call a group of musicians who play together?|an orchestra|a library|a garden|a forest
"""

PROSE = """\
The old bridge over the river was closed for repairs, so the children had to walk the long way to school.
When the rain stopped, she opened the window and let the fresh air into the room.
He put the letter back into its envelope and placed it carefully on the table.
Most birds leave the valley before the first snow and return in the spring.
The doctor said that he should rest for a few days and drink plenty of water.
A small shop on the corner sells bread, milk and newspapers.
They planted apple trees along the road so that travellers would have shade and fruit.
The train was late again, and nobody on the platform knew why.
In the evening the whole family sat around the fire and told stories.
The teacher asked the class to read the first chapter before the next lesson.
Our neighbours have a large garden where they grow beans, onions and potatoes.
The museum is open every day except Monday, and entrance is free for students.
She learned to play the piano when she was very young, and she still plays every morning.
The ship left the harbour at dawn and sailed toward the open sea.
After the meeting, the manager thanked everyone for their work and wished them a good weekend.
Plants need light, water and air in order to grow.
The cat slept on the warm stones while the dog watched the gate.
He forgot his umbrella at the office and came home soaking wet.
The mountain path is steep, but the view from the top is worth the effort.
Scientists measure the temperature of the ocean to understand how the climate is changing.
The library has a quiet room where people can study without being disturbed.
My grandfather repaired clocks, and his workshop was full of ticking.
The bus driver waited until the old woman had found a seat.
Every summer we spend a week at the coast and swim in the sea.
The company decided to build a new factory near the railway station.
She wrote the address on a piece of paper and gave it to the driver.
The soup needs a little more salt and some fresh herbs.
It is easier to learn a language when you speak it every day.
The farmer looked at the dark clouds and hurried to bring in the hay.
A good map shows not only the roads but also the hills and the rivers.
The lights went out during the storm, and we looked for candles in the kitchen.
Children learn about the world by playing and asking questions.
The baker gets up in the middle of the night so that the bread is ready in the morning.
Nobody could remember who had painted the picture above the door.
The engine made a strange noise and then stopped completely.
If you heat water for long enough, it begins to boil and turns into steam.
The two friends had not seen each other for many years, but they talked as if no time had passed.
The road through the forest is narrow, so large trucks are not allowed to use it.
He read the instructions twice before he put the parts together.
The city grew quickly after the discovery of gold in the nearby hills.
"""

# What the language model itself continues, so that alignment can rehearse what it could say before (its own words, not a data set).
SEEDS = """\
Explain why the sky is blue.|Write a short story about a lost dog.|Give three tips for sleeping well.|What is photosynthesis?|Describe a day at the beach.
How do I make pancakes?|Why do leaves change colour in autumn?|Write a polite letter to a landlord.|What does a lawyer do?|How does a bicycle work?
Explain the water cycle.|What is the difference between weather and climate?|Tell me about the Roman Empire.|How can I learn to cook?|What is a metaphor?
Write a poem about winter.|Why is exercise important?|How do magnets work?|Describe your favourite meal.|What makes a good friend?
Explain how vaccines work.|What is the purpose of a budget?|How do plants grow?|Write a description of an old house.|Why do people travel?
What is machine learning?|How are rainbows formed?|Give advice to a new student.|What causes earthquakes?|Describe the life of a fisherman.
"""
